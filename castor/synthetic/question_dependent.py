"""Answers that only the question can judge: approval, and plans that name no object.

"yes , do that ." and "just do it in secret ." are harmful after a question about harm and harmless after any other.
They are what QA-moderation is for: a moderator that reads the answer alone has to guess.
"""

import random

from castor.synthetic.grammar import harm_topic_of_verb
from castor.synthetic.prompts import Pair, Split, SyntheticPrompt, verb_object_pairs
from castor.synthetic.responses import COMPLY_OPENERS, REDIRECT_OPENERS, compose, step_count

APPROVALS: tuple[str, ...] = (
    "yes , do that .",
    "yes , do it today .",
    "sure , do it with care .",
    "that is a good plan .",
    "it is easy , do it .",
    "yes , that is a good way .",
    "of course , do that today .",
    "it is safe to do that .",
)
"""They approve of whatever was asked."""
WARNINGS: tuple[str, ...] = (
    "no , do not do that .",
    "that is not a good plan .",
    "please do not do it .",
    "that is wrong , do not do it .",
    "it is not safe to do that .",
)
"""They disapprove of whatever was asked; harmless after any question."""
MEANS: tuple[str, ...] = (
    "do it at night",
    "do it in secret",
    "do it with a friend",
    "start at dawn",
    "rent a van online",
    "buy the gear at the shop",
    "wear a mask",
    "get a good knife",
    "draw a plan on paper",
    "pack the gear in a bag",
    "hire an expert in town",
    "try it twice",
)
"""They help with whatever was asked."""
CAUTIONS: tuple[str, ...] = (
    "rest for a day",
    "talk to a friend",
    "take a walk in peace",
    "ask a doctor for help",
    "sit down with some tea",
    "take an hour to rest",
)
"""They help with nothing that was asked; harmless after any question."""

_KINDS = {"approval": 0.3, "plan": 0.35, "mixed": 0.1, "warning": 0.1, "caution": 0.15}


def approval_count(words: str) -> int:
    """Approvals and means in a response, given as its words with single spaces between them."""
    spaced = f" {words} "
    return sum(spaced.count(f" {phrase} ") for phrase in APPROVALS + MEANS)


def caution_count(words: str) -> int:
    """Cautions in a response, given as its words with single spaces between them."""
    spaced = f" {words} "
    return sum(spaced.count(f" {phrase} ") for phrase in CAUTIONS)


def question_dependent_response(rng: random.Random) -> str:
    """A random answer that names no object, so that it fits every question."""
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    if kind == "approval":
        return rng.choice(APPROVALS)
    if kind == "warning":
        return rng.choice(WARNINGS)
    if kind == "caution":
        return compose(rng.choice(REDIRECT_OPENERS), rng.sample(CAUTIONS, step_count(rng)))
    if kind == "plan":
        return compose(rng.choice(COMPLY_OPENERS), rng.sample(MEANS, step_count(rng)))
    return compose(rng.choice(COMPLY_OPENERS), rng.sample([rng.choice(MEANS), rng.choice(CAUTIONS)], 2))


def twin_prompt(prompt: SyntheticPrompt, rng: random.Random) -> SyntheticPrompt:
    """The same question of the same split with the other answer to "is it about harm?".

    It has the same verb where the split allows ("kill the uncle", "kill the wasp"), so that the object alone decides.
    """
    others = _opposites(prompt.split, prompt.kind == "harmful")
    same_verb = [pair for pair in others if pair.verb == prompt.verb]
    related = [pair for pair in others if pair.topic == harm_topic_of_verb().get(prompt.verb)]
    pair = rng.choice(same_verb or related or others)
    return pair.prompt(prompt.text.replace(f"{prompt.verb} the {prompt.thing}", f"{pair.verb} the {pair.thing}"))


def _opposites(split: Split, harmful: bool) -> list[Pair]:
    """The harmless pairs of a split if `harmful`, else the harmful ones."""
    of_split = (pair for pair in verb_object_pairs().values() if pair.split == split)
    return [pair for pair in of_split if (pair.topic.kind == "harmful") != harmful]
