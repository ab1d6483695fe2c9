"""Models whose responses end where a prompt says: every system that samples from them gets the same lengths.

A token stands for how many more tokens follow. After one of count c comes any of the tokens of count c - 1, all
equally likely, and count 0 is the end of the text. So the last token of a prompt is the length of its response, through
nothing but sampling: no engine is told to stop, and the policy's entropy is that of its choice among equals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from castor.config.data import DataSource
from castor.config.demo_model import DemoModel
from castor.data.rows.load import load_prompts
from castor.data.sources.report import RowReport
from castor.data.tokens.prompt_stream import Prompt
from castor.models.score import ScoreInfo, ScoreModel, ScoreType, save_score_model
from castor.models.tiny import SPECIAL_TOKENS, train_tokenizer

EQUALS = 9  # tokens of each count
FIRST = len(SPECIAL_TOKENS)  # the first token of count 1
SURE = 30.0  # logit of the tokens that may follow; that of all others is about 0


@dataclass(frozen=True)
class Shape:
    """A Llama. `longest` is that of its responses, in tokens; the vocabulary follows."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    intermediate: int = 688
    longest: int = 110

    @property
    def vocabulary(self) -> int:
        """Special tokens, and those of every count, rounded up to a multiple of 64."""
        return -(-(FIRST + self.longest * EQUALS) // 64) * 64


@dataclass(frozen=True)
class Folders:
    """A policy, and a reward and a cost model on its backbone with random heads."""

    policy: Path
    reward: Path
    cost: Path


def make_models(folder: Path, shape: Shape) -> Folders:
    """Make the three in `folder`; the same shape gives the same weights."""
    made = Folders(folder / "policy", folder / "reward", folder / "cost")
    tokenizer = train_tokenizer(DemoModel(vocab_size=64), load_prompts(DataSource(limit=200), RowReport()))
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    _count_down(policy, shape, int(tokenizer.eos_token_id))
    policy.save_pretrained(made.policy)
    tokenizer.save_pretrained(made.policy)
    kinds: dict[ScoreType, Path] = {"reward": made.reward, "cost": made.cost}
    for kind, place in kinds.items():
        model = ScoreModel.from_backbone(str(made.policy), ScoreInfo(kind), torch.float32)
        weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
        save_score_model(place, model.backbone, weights, model.info, str(made.policy))
    return made


@torch.no_grad()
def _count_down(policy: LlamaForCausalLM, shape: Shape, end: int) -> None:
    """Embeddings that say the count in directions of their own, and an output layer that reads the next one there.

    What the layers add to an embedding is small beside it. Raises ValueError when the width has too few directions.
    """
    if shape.hidden < shape.longest:
        raise ValueError(f"a width of {shape.hidden} does not tell {shape.longest} counts apart")
    directions = torch.linalg.qr(torch.randn(shape.hidden, shape.longest))[0].T * shape.hidden**0.5  # of unit RMS
    into = cast(Tensor, policy.get_input_embeddings().weight)
    out = cast(Tensor, policy.get_output_embeddings().weight)
    out.zero_()
    for count in range(1, shape.longest + 1):
        own = tokens_of(count)
        into[own] = directions[count - 1] + 0.1 * torch.randn(len(own), shape.hidden)
        if count < shape.longest:
            out[own] = directions[count] * SURE / shape.hidden
    out[end] = directions[0] * SURE / shape.hidden


def tokens_of(count: int) -> NDArray[np.int64]:
    """[EQUALS] tokens after which `count` more follow."""
    start = FIRST + (count - 1) * EQUALS
    return np.arange(start, start + EQUALS)


def long_tailed(count: int, shape: Shape, mean: float, seed: int) -> NDArray[np.int64]:
    """[count] response lengths, the end of the text included: geometric, and none over `shape.longest`."""
    return np.random.default_rng(seed).geometric(1.0 / mean, count).clip(max=shape.longest)


def make_prompts(lengths: NDArray[np.int64], prompt_tokens: int, seed: int) -> list[Prompt]:
    """A prompt for every length of a response, of random tokens and the one that says it."""
    random = np.random.default_rng(seed)
    longest = int(lengths.max())
    made = []
    for number, length in enumerate(lengths.tolist()):
        ids = random.integers(FIRST, FIRST + longest * EQUALS, prompt_tokens)
        ids[-1] = random.choice(tokens_of(length))
        made.append(Prompt(f"prompt {number}", ids.astype(np.int32)))
    return made


def response_length(prompt: Prompt) -> int:
    """How many tokens answer a prompt of `make_prompts`."""
    return (int(prompt.ids[-1]) - FIRST) // EQUALS + 1
