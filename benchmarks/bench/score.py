"""Scores of responses that arrive in chunks, against the sum of bare forward passes over the same packed rows; and of
the windows of streamed answers, read on, against all that there is of an answer read anew for every window.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench.batches import engine, experience
from benchmarks.bench.countdown import Shape, make_models
from benchmarks.bench.measurement import Ratio, Section, in_turns, paired
from castor.config.judge import Judge
from castor.dealing import micro_batches
from castor.experience import Experience
from castor.model_reference import ModelReference
from castor.models.prefixes import Prefixes
from castor.models.score import ScoreModel
from castor.packing import PackedRows, pack_rows
from castor.scoring.experience_scorer import judge_scorer
from castor.scoring.frozen import FrozenModel

CHUNK = 16  # responses, as the rollout hands them on
PROMPT, WINDOW, STREAMS = 60, 64, 4  # tokens of a question and of a window; answers that are streamed at a time


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
    times = in_turns(_windows(scorer.frozen, shape, windows=2 if smoke else 4), repetitions)
    ratios.append(
        Ratio(
            "windows read anew / windows read on",
            paired(times["windows, anew"], times["windows, on"]),
            at_least=1.0 if smoke else 2.0,
            bounded_by="what is done once per pass and per layer, however few the tokens",
        )
    )
    return Section(
        "score",
        tuple(ratios),
        {f"{name} (responses/s)": responses / float(np.median(seconds)) for name, seconds in found.items()},
    )


def _windows(model: FrozenModel | None, shape: Shape, windows: int) -> dict[str, Callable[[], object]]:
    """A cost model on growing answers, as the guard asks it: with what it has read of them before, and without."""
    assert model is not None
    tokens = np.random.default_rng(0).integers(0, shape.vocabulary, (STREAMS, PROMPT + WINDOW * windows))
    ends = [PROMPT + WINDOW * (number + 1) for number in range(windows)]

    def anew() -> None:
        for end in ends:
            model.unchecked_outputs(list(tokens[:, :end]))

    def on() -> None:
        read = Prefixes(tokens.size)
        for end in ends:
            model.continued_outputs(list(tokens[:, :end]), range(STREAMS), read)

    return {"windows, anew": anew, "windows, on": on}


def _passes(chunk: Experience) -> list[tuple[PackedRows, Tensor]]:
    """What the scorer runs for a chunk: packed rows, and where the responses end in the flattened rows."""
    options, made = engine(), []
    for piece in micro_batches(chunk.lengths, [range(len(chunk))], options.micro_batch_tokens)[0]:
        part = chunk.select(piece)
        rows = pack_rows(part.tokens, part.lengths, options.pack_length, masked=True)
        made.append((rows, rows.flat[torch.from_numpy(np.cumsum(part.lengths) - 1)]))
    return made
