"""Where the time of a step goes at the shape of SmolLM2-135M: bfloat16, an adapter, leave-one-out, 32 responses."""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.bench.loop import running
from benchmarks.bench.measurement import Section
from castor.config.data import DataSource
from castor.config.demo_model import DemoModel
from castor.config.learner import Learner
from castor.config.rlhf import RLHF, Policy
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import Engine, LoRA, Optimizer, Resources
from castor.data.rows.load import load_prompts
from castor.data.sources.report import RowReport
from castor.data.tokens.prompt_stream import Prompt, PromptStream
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import train_tokenizer

PROMPT_TOKENS, MEAN_LENGTH, LONGEST = 55, 54, 200
SHAPE: dict[str, Any] = {  # of SmolLM2-135M
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49_152,
}  # fmt: skip
SMALL: dict[str, Any] = {
    **SHAPE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 2048,
}  # fmt: skip
LAPS = ("rollout_s", "learn_s", "transfer_s")


def measure(smoke: bool) -> Section:
    """Seconds of rollout, learning and transfer; the median of the steps after the first."""
    shape, responses, steps = (SMALL, 8, 2) if smoke else (SHAPE, 32, 2)
    engine = Engine(
        dtype="bfloat16",
        optimizer=Optimizer(lr=1e-5, lr_scheduler_type="constant", lr_warmup_ratio=0.0),
    )  # fmt: skip
    config = RLHF(
        steps=10**6,
        prompts_per_step=responses // 4,
        samples_per_prompt=4,
        policy=Policy(lora=LoRA()),
        signals={"reward": Signal(role="objective", model="unused")},
        advantage={"estimator": "leave_one_out"},
        rollout=Rollout(max_prompt_tokens=PROMPT_TOKENS, max_new_tokens=LONGEST, dtype="bfloat16", chunk_size=8),
        learner=Learner(engine=engine, resources=Resources(threads=2)),
    )
    with tempfile.TemporaryDirectory() as place:
        policy, reward = make_models(Path(place), shape)
        random = np.random.default_rng(0)
        prompts = [
            Prompt(f"prompt {number}", random.integers(5, shape["vocab_size"], PROMPT_TOKENS).astype(np.int32))
            for number in range(responses // 4 * steps)
        ]
        with running(config, policy, {"reward": reward}, Path(place)) as loop:
            rows = loop.block(PromptStream(prompts, config.prompts_per_step, 0), steps).rows[1:]
    figures = {f"{lap.removesuffix('_s')} (s)": statistics.median(row[lap] for row in rows) for lap in LAPS}
    figures["response length, mean (tokens)"] = statistics.fmean(row["response_length"] for row in rows)
    return Section("smollm", (), figures)


def make_models(folder: Path, shape: dict[str, Any]) -> tuple[Path, Path]:
    """A policy with random weights that ends at any token after MEAN_LENGTH tokens on average, and a small judge."""
    policy, reward = folder / "policy", folder / "reward"
    tokenizer = train_tokenizer(DemoModel(), load_prompts(DataSource(limit=200), RowReport()))
    torch.manual_seed(0)
    for place, sizes in ((policy, shape), (folder / "judge", {**SMALL, "vocab_size": shape["vocab_size"]})):
        made = LlamaForCausalLM(
            LlamaConfig(
                **sizes, tie_word_embeddings=True, max_position_embeddings=256, bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        _end_by_chance(made, int(tokenizer.eos_token_id))
        made.bfloat16().save_pretrained(place)
        tokenizer.save_pretrained(place)
    judge = ScoreModel.from_backbone(str(folder / "judge"), ScoreInfo("reward"), torch.float32)
    weights = {name: tensor.detach() for name, tensor in judge.named_parameters()}
    save_score_model(reward, judge.backbone, weights, judge.info, str(policy))
    return policy, reward


@torch.no_grad()
def _end_by_chance(model: LlamaForCausalLM, end: int) -> None:
    """One direction of the embeddings, which are the output layer too, is the same for all tokens but the last one: how
    much it has there is how likely the end is, wherever the text stands.
    """
    into = cast(Tensor, model.get_input_embeddings().weight)
    into[:, 0], into[end] = 1.0, 0.0
    tokens = torch.randint(5, len(into), (4, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    hidden = model.model(tokens).last_hidden_state[:, -1]
    others = torch.logsumexp(hidden @ into.T, -1)
    into[end, 0] = ((others - math.log(MEAN_LENGTH - 1)) / hidden[:, 0]).mean()
