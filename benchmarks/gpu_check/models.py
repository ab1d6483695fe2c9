"""Random models of the check, and rows to run through them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

from castor.dry_run.shapes import Shape, shape_of
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel
from castor.packing import PackedRows, pack_rows

TINY = "tiny"
CONFIGS = {  # a model gets a copy: it keeps its choice of attention there
    TINY: LlamaConfig(  # vLLM's attention on a CPU takes no heads under 32
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128,
    ),
    "0.1B": LlamaConfig(
        vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=4096,
    ),
    "1B": LlamaConfig(  # the shape of Llama-3.2-1B
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=4096, tie_word_embeddings=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Packed sequences, and the flat positions of the tokens that a model is asked for."""

    rows: PackedRows
    positions: torch.Tensor  # [K] int64
    tokens: int


def policy(name: str, dtype: torch.dtype, device: torch.device) -> PolicyModel:
    """A language model with random weights."""
    torch.manual_seed(0)
    with device:
        lm = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]), dtype=dtype)
    lm.config.use_cache = False
    return PolicyModel(lm)


def critic(name: str, dtype: torch.dtype, device: torch.device) -> ScoreModel:
    """A score model with random weights."""
    torch.manual_seed(0)
    with device:
        backbone = AutoModel.from_config(deepcopy(CONFIGS[name]), dtype=dtype)
        backbone.config.use_cache = False
        return ScoreModel(backbone, ScoreInfo("critic"))


def shape(name: str) -> Shape:
    """Its sizes, for an estimate of the memory."""
    return shape_of(CONFIGS[name])


def batch(name: str, sequences: int, length: int, pack_length: int, device: torch.device, seed: int = 0) -> Batch:
    """Random sequences, of `length` tokens on average; the second half of each is its response."""
    random = np.random.default_rng(seed)
    lengths = random.integers(length // 2, length + length // 2, sequences)
    tokens = random.integers(0, CONFIGS[name].vocab_size, int(lengths.sum())).astype(np.int32)
    ends = np.cumsum(lengths)
    positions = np.concatenate([np.arange(end - size // 2, end) for end, size in zip(ends, lengths, strict=True)])
    rows = pack_rows(tokens, lengths, pack_length).to(device)
    return Batch(rows, torch.from_numpy(positions).to(device), int(lengths.sum()))
