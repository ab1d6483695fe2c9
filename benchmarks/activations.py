"""The largest number of bytes that tensors take in a forward and a backward pass, beside what `--dry-run` estimates.

`python -m benchmarks.activations` runs random Llamas on the CPU, where torch's tracker sees every tensor there is:
weights, their gradients, what is kept for the backward pass, and what comes and goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaForCausalLM, LlamaModel

from castor.config.demo_model import DemoModel
from castor.config.training import Engine
from castor.dry_run.memory import activations, bytes_per_number
from castor.dry_run.shapes import measure
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel
from castor.models.tiny import llama_config
from castor.packing import pack_rows

MIB = 1 << 20
SEQUENCE = 64  # tokens
TEMPERATURE = 0.7  # any but 1, at which logits are not divided and take less
DEEP = DemoModel(vocab_size=1024, hidden_size=256, layers=4, heads=4, intermediate_size=688)
WIDE = DemoModel(vocab_size=16_384, hidden_size=128, layers=2, heads=4, intermediate_size=344)


@dataclass(frozen=True)
class Case:
    """What is trained how."""

    model: DemoModel
    dtype: str = "float32"
    score: bool = False
    recomputed: bool = False
    chunk_tokens: int | None = None
    entropy: bool = False

    def __str__(self) -> str:
        words = ["deep" if self.model is DEEP else "wide", self.dtype, "score" if self.score else "policy"]
        words += ["recomputed"] * self.recomputed + [f"chunks of {self.chunk_tokens}"] * bool(self.chunk_tokens)
        return ", ".join(words + ["entropy"] * self.entropy)

    @property
    def engine(self) -> Engine:
        """Without ZeRO."""
        return Engine(
            dtype=self.dtype,
            micro_batch_tokens=1024,
            pack_length=256,
            gradient_checkpointing=self.recomputed,
            logits_chunk_tokens=self.chunk_tokens,
        )


CASES = [
    Case(DEEP, dtype, score, recomputed, None if score else 128)
    for dtype in ("float32", "bfloat16")
    for score in (False, True)
    for recomputed in (False, True)
] + [
    Case(WIDE, dtype, chunk_tokens=chunk, entropy=entropy)
    for dtype in ("float32", "bfloat16")
    for chunk in (None, 256)
    for entropy in (False, True)
]


def estimated(case: Case) -> float:
    """Bytes of weights, their gradients and working memory, as the dry run has them."""
    shape = measure(case.model)
    assert shape is not None
    size = bytes_per_number(case.dtype, on_gpu=False)
    parameters = shape.score if case.score else shape.parameters
    working = activations(shape, case.engine, size, score=case.score, training=True, entropy=case.entropy)
    return 2 * parameters * size + working


def measured(case: Case) -> int:
    """Bytes at the worst moment of a forward and a backward pass."""
    engine, kind = case.engine, getattr(torch, case.dtype)
    torch.manual_seed(0)
    inner: Any = (LlamaModel if case.score else LlamaForCausalLM)(llama_config(case.model, case.model.vocab_size))
    inner = inner.to(kind)
    if case.recomputed:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model: Any = ScoreModel(inner, ScoreInfo("reward")) if case.score else PolicyModel(inner, engine=engine)
    tokens = engine.micro_batch_tokens
    lengths = np.full(tokens // SEQUENCE, SEQUENCE)
    rows = pack_rows(np.arange(tokens) % case.model.vocab_size, lengths, engine.pack_length)
    positions = torch.arange(tokens)
    positions = positions[positions % SEQUENCE != 0]
    tracker: Any = MemTracker()
    tracker.track_external(model.train())
    with tracker:
        output = model(rows, positions) if case.score else model(rows, positions, TEMPERATURE, case.entropy)
        output.sum().backward()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def main() -> None:
    """Print the table."""
    print(f"{'':<52}{'estimated':>10}{'measured':>10}{'ratio':>8}")
    for case in CASES:
        said, found = estimated(case), measured(case)
        print(f"{case!s:<52}{said / MIB:>8.0f}{found / MIB:>10.0f}{said / found:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
