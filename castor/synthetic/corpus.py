"""Generators of the synthetic corpus.

Each depends on (options, split) alone: n rows are the first n of more rows. Noise options change labels, never texts.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

from castor.config.data import SyntheticOptions
from castor.synthetic.annotator import SafetyLabel, annotate_pair, label_safety
from castor.synthetic.edits import flawed_pair
from castor.synthetic.grammar import PromptKind
from castor.synthetic.judge import judge
from castor.synthetic.prompts import Split, SyntheticPrompt, known_split, prompt_forms, verb_object_pairs
from castor.synthetic.question_dependent import question_dependent_response, twin_prompt
from castor.synthetic.responses import (
    COMPARISON_MIX,
    DEMONSTRATION_JUNK,
    DEMONSTRATION_MIX,
    JUNK_WEIGHTS,
    sample_from_mix,
)
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, pku_to_beavertails

PROMPT_BLOCK: tuple[PromptKind, ...] = ("harmful", "harmful", "harmful", "benign", "lookalike")
"""Every five prompts in a row are these kinds in random order: 60 / 20 / 20 %."""
RESPONSES_PER_PROMPT = 3
"""QA rows come in groups of this many with one prompt (the last group may be cut); one of them fits every question."""
FLAWED_PAIRS = 0.5
_DRAWS = 100


def _rng(options: SyntheticOptions, purpose: str, split: str) -> random.Random:
    return random.Random(f"castor synthetic {options.seed} {purpose} {split}")  # a string seed is hashed with SHA-512


def _of_kind(split: Split, kind: PromptKind, rng: random.Random) -> Iterator[SyntheticPrompt]:
    """Endless prompts of a kind: each pass visits every pair once, in another of its forms while they last."""
    pairs = [pair for pair in verb_object_pairs().values() if pair.split == split and pair.topic.kind == kind]
    forms = [prompt_forms(pair) for pair in pairs]
    for of_pair in forms:
        rng.shuffle(of_pair)
    for number in itertools.count():
        rng.shuffle(forms)
        for of_pair in forms:
            yield of_pair[number % len(of_pair)]


def _prompts(split: str, rng: random.Random, block: Sequence[PromptKind] = PROMPT_BLOCK) -> Iterator[SyntheticPrompt]:
    known = known_split(split)
    streams = {kind: _of_kind(known, kind, rng) for kind in block}
    while True:
        for kind in rng.sample(block, len(block)):
            yield next(streams[kind])


def prompts(options: SyntheticOptions, split: str, n: int) -> Iterator[str]:
    """n prompts, 60 % harmful, 20 % benign, 20 % look-alike.

    None repeats before its kind is used up: the first 28,260 prompts of train, 3,420 of validation and 4,230 of test
    are all different.

    Raises:
        CastorError: there is no such split.
    """
    for prompt in itertools.islice(_prompts(split, _rng(options, "prompts", split)), n):
        yield prompt.text


def demonstrations(options: SyntheticOptions, split: str, n: int) -> Iterator[dict]:
    """n rows {prompt, response} for supervised fine-tuning: the prompt mix, or its harmless kinds; DEMONSTRATION_MIX.

    Raises:
        CastorError: there is no such split.
    """
    rng = _rng(options, "demonstrations", split)
    block = [kind for kind in PROMPT_BLOCK if kind != "harmful" or options.prompts == "all"]
    for prompt in itertools.islice(_prompts(split, rng, block), n):
        _, response = sample_from_mix(prompt, DEMONSTRATION_MIX, DEMONSTRATION_JUNK, rng)
        yield {"prompt": prompt.text, "response": response}


def _different(prompt: SyntheticPrompt, count: int, rng: random.Random) -> list[str]:
    """Different template responses to one prompt, drawn from COMPARISON_MIX."""
    found: dict[str, None] = {}
    for _ in range(_DRAWS):
        found.setdefault(sample_from_mix(prompt, COMPARISON_MIX, JUNK_WEIGHTS, rng)[1])
        if len(found) == count:
            return list(found)
    raise RuntimeError(f"{_DRAWS} draws gave fewer than {count} different responses to {prompt.text!r}")


def preference_rows(options: SyntheticOptions, split: str, n: int) -> Iterator[dict]:
    """n annotated pairs of template responses in the PKU-SafeRLHF schema.

    A share FLAWED_PAIRS of them sets a good answer against a copy with one flaw, the others two unrelated responses.

    Raises:
        CastorError: there is no such split.
    """
    rng, labels = _rng(options, "preferences", split), _rng(options, "preference labels", split)
    for prompt in itertools.islice(_prompts(split, rng), n):
        flawed = rng.random() < FLAWED_PAIRS
        first, second = rng.sample(flawed_pair(prompt, rng), 2) if flawed else _different(prompt, 2, rng)
        yield annotate_pair(prompt.text, first, second, labels, options, response_source="template")


def _questions_and_answers(split: str, rng: random.Random) -> Iterator[tuple[SyntheticPrompt, str]]:
    """Endless prompts, each followed by its twin; both get template responses and share a question-dependent one."""
    for prompt in _prompts(split, rng):
        shared = question_dependent_response(rng)
        for asked in (prompt, twin_prompt(prompt, rng)):
            responses = [*_different(asked, RESPONSES_PER_PROMPT - 1, rng), shared]
            for response in rng.sample(responses, len(responses)):
                yield asked, response


def qa_rows(options: SyntheticOptions, split: str, n: int) -> Iterator[dict]:
    """n labelled responses, three to a prompt; labels are wrong at `options.safety_noise`.

    Every other prompt is the twin of the one before: the same question about something harmful instead of something
    harmless, or the reverse. One response of the three is the same after both, and often only the question can tell
    whether it is harmful. The schema is that of BeaverTails or, with `options.taxonomy: pku`, of PKU-SafeRLHF-QA.

    Raises:
        CastorError: there is no such split.
    """
    rng, labels = _rng(options, "qa", split), _rng(options, "qa labels", split)
    for prompt, response in itertools.islice(_questions_and_answers(split, rng), n):
        label = label_safety(prompt.text, judge(prompt.text, response), labels, options.safety_noise)
        yield {"prompt": prompt.text, "response": response, **_labels(label, options)}


def _labels(label: SafetyLabel, options: SyntheticOptions) -> dict:
    if options.taxonomy == "beavertails":
        held = pku_to_beavertails(label.categories)
        return {"is_safe": label.safe, "category": {name: name in held for name in BEAVERTAILS_CATEGORIES}}
    mapping = {name: name in label.categories for name in PKU_CATEGORIES}
    return {"is_safe": label.safe, "harm_category": mapping, "severity_level": int(label.severity)}
