"""Preference rows from a file to token ids, against `datasets` and the tokenizer alone on the same file."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from benchmarks.bench.measurement import Ratio, Section, in_turns, paired
from castor.config.data import DataSource
from castor.config.demo_model import DemoModel
from castor.data.rows.load import PreferenceLabel, stream_preferences
from castor.data.rows.schemas import PreferenceRow
from castor.data.rows.store import RowStore
from castor.data.sources.report import RowReport
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate
from castor.models.tiny import train_tokenizer

LABELS = ("is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id")
TEXTS = ("prompt", "response_0", "response_1")
BATCH, LONGEST = 1000, 512
NEED: tuple[PreferenceLabel, ...] = ("better",)  # labels, as the stage of the reward model asks for


def measure(smoke: bool) -> Section:
    """Reading, reading with checks, tokenising, and all of it, in rows a second."""
    count, repetitions = (400, 2) if smoke else (12_000, 3)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = write_rows(folder / "rows.jsonl", count)
        rows = list(stream_preferences(DataSource(source=str(file)), RowReport()))
        trained = DemoModel(tokenizer="bpe", vocab_size=4096)
        tokenizer = train_tokenizer(trained, (row.response_0 for row in rows[:2000]))
        template = PromptTemplate(tokenizer)
        texts = [
            text
            for row in rows
            for answer in (row.response_0, row.response_1)
            for text in (template.prompt_text(row.prompt), answer)
        ]

        def stored() -> RowStore[PreferenceRow]:
            checked = stream_preferences(DataSource(source=str(file)), RowReport(), need=NEED)
            return RowStore.write(folder / "rows.arrow", PreferenceRow, checked)

        def read_by_datasets() -> None:
            with tempfile.TemporaryDirectory(dir=place) as cache:
                loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
                for _ in loaded:
                    pass

        times = in_turns(
            {
                "datasets": read_by_datasets,
                "Castor, reading and checking": stored,
                "tokenizer": lambda: _encode(tokenizer, texts),
                "Castor, tokenising": lambda: Samples(template, (row.exchanges for row in rows), LONGEST),
                "Castor, everything": lambda: Samples(template, (row.exchanges for row in stored()), LONGEST),
            },
            repetitions,
        )
    alone = tuple(a + b for a, b in zip(times["datasets"], times["tokenizer"], strict=True))
    compared = {
        "datasets alone / reading and checking into a store": (times["datasets"], "Castor, reading and checking"),
        "tokenizer alone, in batches / tokenising": (times["tokenizer"], "Castor, tokenising"),
        "datasets and tokenizer alone / everything": (alone, "Castor, everything"),
    }
    bounds = (
        "a check of every field in Python",
        "what makes sequences of the ids, on one core, where the tokenizer takes all",
        "both",
    )
    ratios = (
        Ratio(name, paired(over, times[under]), bounded_by=bound)
        for (name, (over, under)), bound in zip(compared.items(), bounds, strict=True)
    )
    return Section(
        "data",
        tuple(ratios),
        {f"{name} (rows/s)": count / float(np.median(seconds)) for name, seconds in times.items()},
    )


def write_rows(file: Path, count: int) -> Path:
    """`count` rows of the synthetic corpus, labelled twice, as JSON lines."""
    with open(file, "w", encoding="utf-8") as handle:
        for row in stream_preferences(DataSource(limit=count), RowReport()):
            values = asdict(row)
            handle.write(json.dumps({name: values[name] for name in (*TEXTS, *LABELS)}) + "\n")
    return file


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    for start in range(0, len(texts), BATCH):
        tokenizer(texts[start : start + BATCH], add_special_tokens=False)
