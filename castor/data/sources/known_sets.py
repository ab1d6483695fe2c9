"""The data sets Castor knows by name, each with the revision that is read unless a config names another."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from castor.io.errors import CastorError

_NEAR_MISS = 0.88  # similarity from which an id is taken for a misspelt one of ours
_SHOWN = 3


@dataclass(frozen=True)
class NamedSet:
    """One data set of the hub.

    `revision` is a commit, so that a release that changes under its name changes nothing here; None where no commit is
    known. `revisions` gives the commits of its named branches. `configs` are configurations; `folders` maps what a
    config may give as `name` to a folder of the set, where the set has folders instead. Empty `splits`: not known.
    `licence` is the identifier that the set's own card gives; None where it is not known here.
    """

    id: str
    revision: str | None = None
    revisions: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    licence: str | None = None
    configs: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """The id without its owner."""
        return self.id.rpartition("/")[2]


_PER_MODEL = {"alpaca-7b": "data/Alpaca-7B", "alpaca2-7b": "data/Alpaca2-7B", "alpaca3-8b": "data/Alpaca3-8B"}
_HH_FOLDERS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")

NAMED_SETS: tuple[NamedSet, ...] = (
    NamedSet(
        "PKU-Alignment/BeaverTails",
        revision="8401fe609d288129cc684a9b3be6a93e41cfe678",
        splits=("30k_train", "30k_test", "330k_train", "330k_test"),
        licence="cc-by-nc-4.0",
    ),
    NamedSet("PKU-Alignment/BeaverTails-Evaluation", splits=("test",)),
    NamedSet(
        "PKU-Alignment/PKU-SafeRLHF",
        revision="9421ffafec3fa40a1f1a7d567b4d525079477ecb",
        revisions={"v0": "ff7ba91063016c78a225b0f74e1c0860bb18230f"},
        aliases=("saferlhf",),
        splits=("train", "test"),
        licence="cc-by-nc-4.0",
        configs=("default", *_PER_MODEL),
    ),
    NamedSet("PKU-Alignment/PKU-SafeRLHF-30K", aliases=("saferlhf-30k",), splits=("train", "test")),
    NamedSet("PKU-Alignment/PKU-SafeRLHF-10K", aliases=("saferlhf-10k",), splits=("train",)),
    NamedSet("PKU-Alignment/PKU-SafeRLHF-single-dimension", splits=("train", "test"), folders=_PER_MODEL),
    NamedSet("PKU-Alignment/PKU-SafeRLHF-QA", splits=("train", "test"), folders=_PER_MODEL),
    NamedSet("PKU-Alignment/PKU-SafeRLHF-prompt", folders=_PER_MODEL),
    NamedSet(
        "tatsu-lab/alpaca",
        revision="dce01c9b08f87459cf36a430d809084718273017",
        splits=("train",),
        licence="cc-by-nc-4.0",
    ),
    NamedSet(
        "Anthropic/hh-rlhf",
        revision="09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
        splits=("train", "test"),
        licence="mit",
        folders={name: name for name in _HH_FOLDERS},
    ),
)

_BY_NAME = {
    name.lower(): named for named in NAMED_SETS for name in (named.id, named.short_name, *named.aliases)
}  # fmt: skip


def find_set(name: str) -> NamedSet | None:
    """The known set of this id, short name or alias, whatever its case."""
    return _BY_NAME.get(name.lower())


def unknown_name(name: str) -> str | None:
    """What to say of a name that is neither a set we know nor like a hub id, with the nearest sets; else None."""
    if find_set(name) is not None or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    near = difflib.get_close_matches(name.lower(), _BY_NAME, n=len(_BY_NAME), cutoff=0.0)
    nearest = list(dict.fromkeys(_BY_NAME[match].id for match in near))[:_SHOWN]
    return (
        f"there is no file, folder or known data set {name!r}; the nearest known sets are {', '.join(nearest)};"
        " for another set of the hub write owner/name"
    )


def misspelt_id(name: str) -> str | None:
    """What to say of a hub id that almost spells a known one; None for any other."""
    ids = {named.id.lower(): named.id for named in NAMED_SETS}
    near = [] if find_set(name) else difflib.get_close_matches(name.lower(), ids, n=1, cutoff=_NEAR_MISS)
    if not near:
        return None
    return (
        f"there is no known data set {name!r}; did you mean {ids[near[0]]}? If it is another set of the hub, give its"
        " revision"
    )


def require_split(named: NamedSet, split: str) -> None:
    """Raise CastorError where the set has no such split. `train[:10%]` and `train+test` are understood."""
    for part in split.split("+"):
        name = part.partition("[")[0].strip()
        if named.splits and name not in named.splits:
            raise CastorError(f"{named.id} has no split {name!r}; set split to one of {', '.join(named.splits)}")


def require_config(named: NamedSet, name: str) -> None:
    """Raise CastorError where the set has neither a configuration nor a folder of this name."""
    choices = (*named.configs, *named.folders)
    if name not in choices:
        given = f"set name to one of {', '.join(choices)}" if choices else "leave name out"
        raise CastorError(f"{named.id} has no configuration {name!r}; {given}")
