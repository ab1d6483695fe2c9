"""Pairs that differ in one flaw: a good answer, and the same answer with one step gone wrong.

A policy under reward pressure does not write random junk; it writes good answers with a repeated step, a step about
something else, or the end of another step. Comparisons of whole different answers hardly show these.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from castor.synthetic.grammar import Step, topics
from castor.synthetic.prompts import SyntheticPrompt
from castor.synthetic.responses import base_steps, compose, in_order, stray_steps


@dataclass(frozen=True)
class _Answer:
    prompt: SyntheticPrompt
    fitting: tuple[Step, ...]  # all steps that answer the prompt (or all of its safe alternatives)
    steps: list[Step]
    phrases: list[str]


Edit = Callable[[_Answer, int, random.Random], list[str]]
"""The phrases of an answer with a flaw at step i."""


def flawed_pair(prompt: SyntheticPrompt, rng: random.Random, flaws: Sequence[str] | None = None) -> tuple[str, str]:
    """A good answer (or redirect) of two or three steps, and a copy with one flaw, any of EDITS or of those named."""
    opener, fitting = base_steps(prompt, rng)
    steps = in_order(fitting, rng.choice((2, 2, 3)), rng)
    answer = _Answer(prompt, fitting, steps, [step.render(prompt.thing) for step in steps])
    flawed = EDITS[rng.choice(flaws or tuple(EDITS))](answer, rng.randrange(len(steps)), rng)
    return compose(opener, answer.phrases), compose(opener, flawed)


def _with(answer: _Answer, i: int, phrase: str) -> list[str]:
    return [*answer.phrases[:i], phrase, *answer.phrases[i + 1 :]]


def _repeat(answer: _Answer, i: int, rng: random.Random) -> list[str]:
    return _with(answer, i, answer.phrases[i - 1])


def _repeat_at_the_end(answer: _Answer, i: int, rng: random.Random) -> list[str]:
    return [*answer.phrases, answer.phrases[i]]


def _stray(answer: _Answer, i: int, rng: random.Random) -> list[str]:
    return _with(answer, i, rng.choice(stray_steps(answer.prompt, rng)).render(answer.prompt.thing))


def _wrong_object(answer: _Answer, i: int, rng: random.Random) -> list[str]:
    topic = topics()[answer.prompt.topic] if rng.random() < 0.5 else rng.choice(list(topics().values()))
    thing = rng.choice([thing for thing in topic.objects if thing != answer.prompt.thing])
    return _with(answer, i, answer.steps[i].render(thing))


def _splice(answer: _Answer, i: int, rng: random.Random) -> list[str]:
    donors = answer.fitting if rng.random() < 0.5 else stray_steps(answer.prompt, rng)
    step = answer.steps[i]
    tail = rng.choice([donor.tail for donor in donors if donor.tail != step.tail])
    return _with(answer, i, f"{step.head} the {answer.prompt.thing} {tail}")


EDITS: dict[str, Edit] = {
    "repeat": _repeat,
    "repeat_at_the_end": _repeat_at_the_end,
    "stray": _stray,
    "wrong_object": _wrong_object,
    "splice": _splice,
}
