"""Harm categories of BeaverTails (14) and PKU-SafeRLHF (19), severities, and the relation of the two taxonomies."""

import difflib
from collections.abc import Iterable, Mapping
from enum import IntEnum

from castor.io.errors import CastorError

# Several keys contain commas: serialise categories as a list or a mapping, never as a comma-joined string.
BEAVERTAILS_CATEGORIES: tuple[str, ...] = (
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)
"""Keys of a BeaverTails row's `category` mapping; the position is the category id."""

PKU_CATEGORIES: tuple[str, ...] = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)
"""Keys of a PKU-SafeRLHF row's `response_*_harm_category` mappings, S1 to S19."""


class Severity(IntEnum):
    """PKU-SafeRLHF's severity levels; NONE goes with a safe response and only with it."""

    NONE = 0
    MINOR = 1
    MODERATE = 2
    SEVERE = 3


# "The two categories share cases": neither data set publishes a map, so this one is Castor's own reading of the names
# and their definitions. It is a relation, not a function: translating and back gives a superset of what one had.
_RELATION: dict[str, tuple[str, ...]] = {
    "Endangering National Security": ("terrorism,organized_crime",),
    "Insulting Behavior": ("hate_speech,offensive_language",),
    "Discriminatory Behavior": ("discrimination,stereotype,injustice", "hate_speech,offensive_language"),
    "Endangering Public Health": ("misinformation_regarding_ethics,laws_and_safety",),
    "Copyright Issues": ("financial_crime,property_crime,theft", "non_violent_unethical_behavior"),
    "Violence": ("violence,aiding_and_abetting,incitement",),
    "Drugs": ("drug_abuse,weapons,banned_substance",),
    "Privacy Violation": ("privacy_violation",),
    "Economic Crime": ("financial_crime,property_crime,theft",),
    "Mental Manipulation": (
        "misinformation_regarding_ethics,laws_and_safety",
        "non_violent_unethical_behavior",
    ),
    "Human Trafficking": ("child_abuse", "terrorism,organized_crime"),
    "Physical Harm": ("self_harm", "violence,aiding_and_abetting,incitement"),
    "Sexual Content": ("sexually_explicit,adult_content",),
    "Cybercrime": ("non_violent_unethical_behavior", "privacy_violation"),
    "Disrupting Public Order": ("controversial_topics,politics", "violence,aiding_and_abetting,incitement"),
    "Environmental Damage": ("non_violent_unethical_behavior",),
    "Psychological Harm": ("non_violent_unethical_behavior", "self_harm"),
    "White-Collar Crime": ("financial_crime,property_crime,theft", "non_violent_unethical_behavior"),
    "Animal Abuse": ("animal_abuse",),
}
_INVERSE: dict[str, tuple[str, ...]] = {
    beavertails: tuple(pku for pku, related in _RELATION.items() if beavertails in related)
    for beavertails in BEAVERTAILS_CATEGORIES
}


def nearest_category(name: str, taxonomy: Iterable[str]) -> str:
    """The category of `taxonomy` that `name` is probably meant for: its counterpart, where it is one of the other
    taxonomy, else the one that is spelt most like it, whatever the case.
    """
    known = {category.casefold(): category for category in taxonomy}
    for counterpart in (*_RELATION.get(name, ()), *_INVERSE.get(name, ())):
        if counterpart in known.values():
            return counterpart
    return known[difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.0)[0]]


class UnknownCategoryError(CastorError, KeyError):
    """A harm category that is in neither taxonomy, or in the other one."""

    __str__ = Exception.__str__  # KeyError would print the message's repr


def _related(categories: Iterable[str], relation: Mapping[str, tuple[str, ...]], taxonomy: str) -> frozenset[str]:
    if isinstance(categories, str):
        raise TypeError(f"categories must be a collection of names, not the single string {categories!r}")
    found: set[str] = set()
    for category in categories:
        if category not in relation:
            nearest = nearest_category(category, relation)
            raise UnknownCategoryError(f"{category!r} is no {taxonomy} harm category; the nearest one is {nearest!r}")
        found.update(relation[category])
    return frozenset(found)


def pku_to_beavertails(categories: Iterable[str]) -> frozenset[str]:
    """BeaverTails categories that share cases with any of the given PKU-SafeRLHF categories.

    Every one of the 19 has at least one counterpart and every one of the 14 is reached.

    Raises:
        UnknownCategoryError: a name is not one of PKU_CATEGORIES; the message names the nearest one.
    """
    return _related(categories, _RELATION, "PKU-SafeRLHF")


def beavertails_to_pku(categories: Iterable[str]) -> frozenset[str]:
    """PKU-SafeRLHF categories that share cases with any of the given BeaverTails categories (the inverse relation).

    Raises:
        UnknownCategoryError: a name is not one of BEAVERTAILS_CATEGORIES; the message names the nearest one.
    """
    return _related(categories, _INVERSE, "BeaverTails")
