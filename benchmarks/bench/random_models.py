"""Llamas of random weights with a tokenizer of words, prompts for them, and cores: what sections work on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from castor.config.demo_model import DemoModel
from castor.data.tokens.prompt_stream import Prompt
from castor.data.tokens.template import load_tokenizer
from castor.models.tiny import SPECIAL_TOKENS, make_demo_model

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


def llama(width: int, layers: int, vocabulary: int, context: int) -> DemoModel:
    """Sizes of a Llama with heads of 64. Its weights are so small that every token is about as likely as another."""
    return DemoModel(
        tokenizer="word", vocab_size=vocabulary, hidden_size=width, layers=layers, heads=max(width // 64, 1),
        intermediate_size=8 * width // 3 // 8 * 8, max_position_embeddings=context, initializer_range=0.02,
    )  # fmt: skip


def text() -> Iterator[str]:
    """Sentences of 3660 words: all of one, of two and of three syllables that end alike."""
    yield " ".join(SYLLABLES)
    for first in SYLLABLES:
        yield " ".join(first + second for second in SYLLABLES)


def make_llama(size: DemoModel, folder: Path) -> str:
    """Write a model and its tokenizer; returns the folder."""
    make_demo_model(size, text(), seed=0, folder=folder)
    return str(folder)


def random_prompts(model: str, count: int, tokens: int) -> list[Prompt]:
    """Prompts of so many random words each; no two share a beginning."""
    tokenizer = load_tokenizer(model)
    ids = np.random.default_rng(0).integers(len(SPECIAL_TOKENS), len(tokenizer), (count, tokens), dtype=np.int32)
    return [Prompt(str(tokenizer.decode(row.tolist())), row) for row in ids]


def cores() -> int:
    """Those that this process may use: on a busy machine `taskset` to one is the fairest."""
    return len(os.sched_getaffinity(0))
