"""The supervised part of the pipeline: demo model, SFT, preference data, reward, cost and moderation models."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from actors.progress import Progress
from actors.rollout import PromptRequest
from actors.rollout_pool import RolloutPool, request_seed
from castor.checkpoint import atomic_folder
from castor.config.supervised import Supervised
from castor.data.hygiene import require_both_classes
from castor.data.load import (
    PreferenceLabel,
    QALabel,
    load_prompts,
    stream_demonstrations,
    stream_preferences,
    stream_qa,
)
from castor.data.rows import PreferenceRow, QARow
from castor.data.synthetic.corpus import sampled_pairs
from castor.data.synthetic.prompts import find_prompt
from castor.errors import CastorError
from castor.files import write_jsonl
from castor.models.tiny import make_demo_model
from trainers.context import Context
from trainers.prompts import fitting_prompts
from trainers.supervised import run_supervised

_SAFETY: tuple[QALabel, ...] = ("is_safe",)


def run_model(context: Context) -> str:
    """Make the demo model; returns one line about it."""
    config = context.config.model
    assert config is not None
    with (
        context.store_rows("model", config.data, QARow, stream_demonstrations) as rows,
        atomic_folder(context.folder.path / "model") as aside,
    ):
        text = (text for row in rows for text in (row.prompt, row.response))
        vocabulary, parameters = make_demo_model(config, text, context.config.seed, aside)
    return f"Llama with {parameters / 1e6:.2f} M parameters, {vocabulary} words"


def run_sft(context: Context) -> str:
    """Supervised fine-tuning."""
    stage = context.config.sft
    assert stage is not None
    with context.store_rows("sft", stage.data, QARow, stream_demonstrations) as rows:
        metrics = _train(context, "sft", stage, rows)
    return f"validation perplexity {metrics['validation_perplexity']:.2f}"


def run_reward(context: Context) -> str:
    """The reward model."""
    stage = context.config.reward
    assert stage is not None
    need: tuple[PreferenceLabel, ...] = ("better",)
    with context.store_rows("reward", stage.data, PreferenceRow, partial(stream_preferences, need=need)) as rows:
        metrics = _train(context, "reward", stage, rows)
    return f"accuracy {metrics['accuracy']:.1%} on {metrics['validation_samples']:.0f} held-out pairs"


def run_cost(context: Context) -> str:
    """The cost model."""
    stage = context.config.cost
    assert stage is not None
    if stage.loss == "sign":
        with context.store_rows("cost", stage.data, QARow, partial(stream_qa, need=_SAFETY)) as answers:
            require_both_classes((row.is_safe for row in answers), "is_safe", "cost")
            metrics = _train(context, "cost", stage, answers)
        return f"sign accuracy {metrics['sign_accuracy']:.1%} on {metrics['validation_samples']:.0f} held-out responses"
    need: tuple[PreferenceLabel, ...] = ("safer", "safe_flags")
    with context.store_rows("cost", stage.data, PreferenceRow, partial(stream_preferences, need=need)) as pairs:
        flags = (flag for row in pairs for flag in (row.is_response_0_safe, row.is_response_1_safe))
        require_both_classes(flags, "is_response_*_safe", "cost")
        metrics = _train(context, "cost", stage, pairs)
    return (
        f"ranking accuracy {metrics['accuracy']:.1%}, sign accuracy {metrics['sign_accuracy']:.1%} "
        f"on {metrics['validation_samples']:.0f} held-out pairs"
    )


def run_moderation(context: Context, name: str) -> str:
    """The moderation model `name`."""
    stage = context.config.moderation[name]
    with context.store_rows(name, stage.data, QARow, partial(stream_qa, need=_SAFETY)) as rows:
        require_both_classes((row.is_safe for row in rows), "is_safe", f"moderation.{name}")
        metrics = _train(context, name, stage, rows)
    severity = f", severity {metrics['severity_accuracy']:.1%}" if "severity_accuracy" in metrics else ""
    return (
        f"accuracy {metrics['accuracy']:.1%}, F1 {metrics['f1']:.1%}, false positives "
        f"{metrics['false_positive_rate']:.1%}{severity} on {metrics['validation_samples']:.0f} held-out rows"
    )


def run_collect(context: Context) -> str:
    """Preference data: several responses per prompt from the SFT policy, judged by the simulated annotator.

    Raises CastorError when a prompt is not of the synthetic corpus: nobody could judge the answers to it.
    """
    stage, config = context.config.collect, context.config
    assert stage is not None
    prompts = context.load_rows("collect", [stage.prompts], load_prompts)
    foreign = next((prompt for prompt in prompts if find_prompt(prompt) is None), None)
    if foreign is not None:
        raise CastorError(
            f"collect: the simulated annotator can only judge the synthetic corpus, and {foreign[:60]!r} is not of it: "
            "give labelled preference rows to reward and cost instead, and leave the collect section out"
        )
    policy = context.folder.model_path(stage.policy)
    prompts = fitting_prompts(context, "collect", prompts, policy, stage.rollout.max_prompt_tokens)
    requests = [
        PromptRequest(i * stage.samples_per_prompt + k, prompt, request_seed(config.seed, "collect", i, k))
        for i, prompt in enumerate(prompts)
        for k in range(stage.samples_per_prompt)
    ]
    answers: dict[int, str] = {}
    with context.terminal.bar("collect") as bar:
        pool = RolloutPool(policy, stage.rollout, config.template)
        try:
            pool.wait_ready()
            for chunk in pool.generate(requests, decode=True):
                assert chunk.info.texts is not None
                answers |= zip(chunk.info.uids, chunk.info.texts, strict=True)
                bar.update(len(answers), len(requests), "responses")
        finally:
            pool.stop()
    rng, rows = random.Random(f"{config.seed} collect"), []
    for i, prompt in enumerate(prompts):
        responses = [answers[i * stage.samples_per_prompt + k] for k in range(stage.samples_per_prompt)]
        rows += sampled_pairs(prompt, responses, rng, stage.prompts.synthetic, stage.pairs_per_prompt)
    write_jsonl(context.folder.path / "collect" / "rows.jsonl", rows)
    return f"{len(rows):,} pairs from {len(requests):,} responses to {len(prompts):,} prompts"


def _train(context: Context, name: str, stage: Supervised, rows: Sequence[Any]) -> dict[str, float]:
    config = context.config
    context.tracker.declare(name)
    note = ""
    with context.terminal.bar(name) as bar:

        def show(progress: Progress) -> None:
            nonlocal note
            if "loss" in progress.metrics:  # and not a validation
                note = f"loss {progress.metrics['loss']:.3f}  {progress.metrics['tokens_per_s']:,.0f} tokens/s"
            bar.update(progress.done, progress.total, note)
            if progress.done:
                context.tracker.log(name, progress.done, progress.metrics)

        return run_supervised(
            stage,
            model=context.folder.model_path(stage.model),
            rows=rows,
            out=context.folder.path / name,
            template=config.template,
            seed=config.seed,
            key=context.key,
            fresh=context.fresh,
            on_progress=show,
        )
