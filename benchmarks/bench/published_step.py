"""The step of the published Safe RLHF trainer (PPO-Lag), plainly: one process, one thing after the other.

Written from the papers (arXiv 2310.12773, 2307.04657) and what their trainer is known to do, to compare with:
responses by transformers' `generate`; then padded forward passes of actor, reference, reward model, cost model and both
critics; then λ, and the updates of actor, reward critic and cost critic. Everything in float32, as one batch, with
AdamW as torch has it. Its arithmetic is its own, on padded tensors, and shares nothing with castor/algorithms: tests
hold the two together.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.bench.countdown import Folders
from castor.data.tokens.prompt_stream import Prompt
from castor.data.tokens.template import load_tokenizer
from castor.models.score import ScoreModel


@dataclass(frozen=True)
class Options:
    """Those of the published script."""

    kl_coeff: float = 0.01
    clip_ratio: float = 0.2
    clip_score: float = 50.0
    clip_value: float = 5.0
    gae_lambda: float = 0.95
    threshold: float = 0.0
    lambda_init: float = 1.0
    lambda_lr: float = 0.1
    lambda_max: float = 5.0
    cost_window: int = 128
    actor_lr: float = 1e-5
    critic_lr: float = 5e-6
    max_grad_norm: float = 1.0


class ScoreHead(nn.Module):
    """A score model as the published one: a transformers backbone, and a score at every token of padded sequences."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, nn.Linear(model.score_head.in_features, 1)
        self.head.load_state_dict(model.score_head.state_dict())

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """[N, L] scores."""
        hidden = self.backbone(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        scores: Tensor = self.head(hidden).squeeze(-1)
        return scores


class PublishedTrainer:
    """Six models in this process."""

    def __init__(self, folders: Folders, options: Options, longest: int) -> None:
        """`longest`: tokens of a response at most."""
        self.options, self.longest = options, longest
        self.tokenizer = load_tokenizer(str(folders.policy))
        self.actor: Any = AutoModelForCausalLM.from_pretrained(folders.policy, dtype=torch.float32)
        self.reference = copy.deepcopy(self.actor).eval()
        self.reward = ScoreHead(ScoreModel.load(str(folders.reward), torch.float32)).eval()
        self.cost = ScoreHead(ScoreModel.load(str(folders.cost), torch.float32)).eval()
        self.critics = {"reward": copy.deepcopy(self.reward).train(), "cost": copy.deepcopy(self.cost).train()}
        self.log_lambda = math.log(options.lambda_init)
        self.costs = deque[float](maxlen=options.cost_window)
        trained: dict[str, tuple[nn.Module, float]] = {"actor": (self.actor, options.actor_lr)}
        trained |= {name: (critic, options.critic_lr) for name, critic in self.critics.items()}
        self.optimizers = {
            name: torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), fused=True)
            for name, (model, lr) in trained.items()
        }

    def step(self, prompts: Sequence[Prompt]) -> tuple[dict[str, float], Tensor]:
        """One step on prompts of equal length. Returns the seconds of generate, forwards and updates, and the lengths
        [N] of the responses.
        """
        seconds, options, start = dict[str, float](), self.options, time.perf_counter()

        def lap(name: str) -> None:
            nonlocal start
            now = time.perf_counter()
            seconds[name], start = now - start, now

        heads = torch.stack([torch.from_numpy(prompt.ids).long() for prompt in prompts])
        width = heads.shape[1]
        self.actor.eval()
        tokens = self.actor.generate(
            heads, attention_mask=torch.ones_like(heads), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=self.longest, use_cache=True,
            eos_token_id=self.tokenizer.eos_token_id, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        self.actor.train()
        lap("generate_s")

        mask = (tokens != self.tokenizer.pad_token_id).long()
        answers = mask[:, width:].bool()  # [N, R] of the response's tokens
        last = mask.sum(1) - 1
        with torch.no_grad():
            old = response_logprobs(self.actor, tokens, mask, width)
            reference = response_logprobs(self.reference, tokens, mask, width)
            ends = {
                name: judge(tokens, mask)[torch.arange(len(tokens)), last]
                for name, judge in {"reward": self.reward, "cost": self.cost}.items()
            }
            values = {name: critic(tokens, mask)[:, width - 1 : -1] for name, critic in self.critics.items()}
        lap("forwards_s")

        self.costs.extend(ends["cost"].tolist())
        lam = self.update_lambda(statistics.fmean(self.costs))
        kl = (old - reference) * answers
        advantages, returns = {}, {}
        for name, sign in {"reward": -1.0, "cost": 1.0}.items():
            stream = with_score_at_the_end(sign * options.kl_coeff * kl, ends[name], answers, options.clip_score)
            advantages[name], returns[name] = advantages_and_returns(stream, values[name], answers, options.gae_lambda)
        combined = (advantages["reward"] - lam * advantages["cost"]) / (1.0 + lam)
        new = response_logprobs(self.actor, tokens, mask, width)
        self._update("actor", self.actor, actor_loss(new, old, combined, answers, options.clip_ratio))
        for name, critic in self.critics.items():
            predicted = critic(tokens, mask)[:, width - 1 : -1]
            loss = critic_loss(predicted, values[name], returns[name], answers, options.clip_value)
            self._update(name, critic, loss)
        lap("updates_s")
        return seconds, answers.sum(1)

    def update_lambda(self, mean_cost: float) -> float:
        """One step of SGD on log λ; returns the λ that the step uses."""
        options = self.options
        self.log_lambda += options.lambda_lr * math.exp(self.log_lambda) * (mean_cost - options.threshold)
        self.log_lambda = min(self.log_lambda, math.log(options.lambda_max))
        return math.exp(self.log_lambda)

    def _update(self, name: str, model: nn.Module, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), self.options.max_grad_norm)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad()


def response_logprobs(model: Callable[..., object], tokens: Tensor, mask: Tensor, width: int) -> Tensor:
    """[N, R] log-probabilities of the tokens after the first `width`, from the logits of all positions."""
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits  # type: ignore[attr-defined]
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return logprobs[:, width - 1 :]


def with_score_at_the_end(stream: Tensor, scores: Tensor, answers: Tensor, clip: float) -> Tensor:
    """`stream` [N, R] with each score [N] added at the last token of its response, then clipped."""
    last = answers.long().cumsum(1).argmax(1)
    return stream.scatter_add(1, last[:, None], scores[:, None]).clamp(-clip, clip)


def advantages_and_returns(stream: Tensor, values: Tensor, answers: Tensor, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates with γ 1, and returns, [N, R]; padding counts as reward and value 0."""
    values, rewards = values * answers, stream * answers
    running, found = torch.zeros(len(stream)), []
    for t in reversed(range(stream.shape[1])):
        following = values[:, t + 1] if t + 1 < stream.shape[1] else 0.0
        running = rewards[:, t] + following - values[:, t] + gae_lambda * running
        found.append(running)
    advantages = torch.stack(found[::-1], 1)
    return advantages, advantages + values


def masked_mean(values: Tensor, answers: Tensor) -> Tensor:
    """Mean over the tokens of each response, then over the responses."""
    return ((values * answers).sum(1) / answers.sum(1)).mean()


def actor_loss(new: Tensor, old: Tensor, advantages: Tensor, answers: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate."""
    ratio = (new - old).exp()
    bounded = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -masked_mean(torch.minimum(advantages * ratio, advantages * bounded), answers)


def critic_loss(values: Tensor, before: Tensor, returns: Tensor, answers: Tensor, clip: float) -> Tensor:
    """Half the larger of the squared errors of the value, and of the value kept near what it was."""
    near = torch.clamp(values, before - clip, before + clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (near - returns) ** 2), answers)
