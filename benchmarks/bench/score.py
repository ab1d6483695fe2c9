"""Scores of responses that arrive in chunks, against the sum of bare forward passes over the same packed rows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench.batches import engine, experience
from benchmarks.bench.countdown import Shape, make_models
from benchmarks.bench.measurement import Ratio, Section, in_turns, paired
from castor.config.judge import Judge
from castor.experience import Experience
from castor.model_reference import ModelReference
from castor.models.score import ScoreModel
from castor.packing import PackedRows, micro_batches, pack_rows
from castor.scoring.experience_scorer import judge_scorer

CHUNK = 16  # responses, as the rollout hands them on


def measure(smoke: bool) -> Section:
    """256 responses in chunks of 16, and all of them at once."""
    shape, responses, repetitions = Shape(), 256, 6
    if smoke:
        shape, responses, repetitions = Shape(hidden=64, layers=2, heads=2, intermediate=96, longest=30), 32, 2
    whole = experience(shape, responses)
    judge = Judge(model="unused")
    with tempfile.TemporaryDirectory() as place:
        models = make_models(Path(place), shape)
        policy = ModelReference(str(models.policy))
        scorer = judge_scorer(judge, "reward", str(models.reward), engine(), policy)
        bare = ScoreModel.load(str(models.reward), torch.float32).eval()
    found: dict[str, tuple[float, ...]] = {}
    ratios = []
    for name, size in {f"chunks of {CHUNK}": CHUNK, "all at once": responses}.items():
        chunks = [whole.select(range(start, start + size)) for start in range(0, responses, size)]
        passes = [each for chunk in chunks for each in _passes(chunk)]

        def ours(chunks: list[Experience] = chunks) -> None:
            for chunk in chunks:
                scorer.score(chunk)

        @torch.no_grad()
        def forwards(passes: list[tuple[PackedRows, Tensor]] = passes) -> None:
            for rows, ends in passes:
                hidden = bare.backbone(
                    rows.input_ids, position_ids=rows.position_ids, use_cache=False
                ).last_hidden_state
                bare.score_head(hidden.flatten(0, 1)[ends])

        times = in_turns({f"Castor, {name}": ours, f"bare, {name}": forwards}, repetitions)
        found |= times
        ratios.append(
            Ratio(
                f"bare forward passes / scores, {name}",
                paired(times[f"bare, {name}"], times[f"Castor, {name}"]),
                at_least=0.95,
                bounded_by="packing the rows, and checking that every score is finite",
            )
        )
    return Section(
        "score",
        tuple(ratios),
        {f"{name} (responses/s)": responses / float(np.median(seconds)) for name, seconds in found.items()},
    )


def _passes(chunk: Experience) -> list[tuple[PackedRows, Tensor]]:
    """What the scorer runs for a chunk: packed rows, and where the responses end in the flattened rows."""
    options, made = engine(), []
    for piece in micro_batches(chunk.lengths, [range(len(chunk))], options.micro_batch_tokens)[0]:
        part = chunk.select(piece)
        rows = pack_rows(part.tokens, part.lengths, options.pack_length, masked=True)
        made.append((rows, rows.flat[torch.from_numpy(np.cumsum(part.lengths) - 1)]))
    return made
