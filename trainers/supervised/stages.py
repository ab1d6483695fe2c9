"""The supervised stages of the pipeline: demo model, SFT, reward, cost and moderation models, DPO.

Every stage is called with its name, which is that of its folder in the run, and the section that configures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from actors.progress import Progress
from castor.config.demo_model import DemoModel
from castor.config.dpo import DPO
from castor.config.moderation import Moderation
from castor.config.preference import Cost, Reward
from castor.config.supervised import SFT, Supervised
from castor.data.rows.load import PreferenceLabel, QALabel, stream_demonstrations, stream_preferences, stream_qa
from castor.data.rows.schemas import PreferenceRow, QARow
from castor.data.sources.report import require_both_classes
from castor.data.tokens.template import require_same_tokenizer
from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.models.tiny import make_demo_model
from trainers.context import Context
from trainers.supervised.driver import run_supervised
from trainers.supervised.tasks.dpo import first_of

_SAFETY: tuple[QALabel, ...] = ("is_safe",)


def run_model(context: Context, name: str, stage: DemoModel) -> str:
    """Make the demo model; returns one line about it."""
    with (
        context.store_rows(name, stage.data, QARow, stream_demonstrations) as rows,
        atomic_folder(context.folder.path / name) as aside,
    ):
        text = (text for row in rows for text in (row.prompt, row.response))
        vocabulary, parameters = make_demo_model(stage, text, context.seed(name), aside)
    return f"Llama with {parameters / 1e6:.2f} M parameters, {vocabulary} words"


def run_sft(context: Context, name: str, stage: SFT) -> str:
    """Supervised fine-tuning."""
    with context.store_rows(name, stage.data, QARow, stream_demonstrations) as rows:
        metrics = _train(context, name, stage, rows)
    return f"validation perplexity {metrics['validation_perplexity']:.2f}"


def run_reward(context: Context, name: str, stage: Reward) -> str:
    """The reward model."""
    need: tuple[PreferenceLabel, ...] = ("better",)
    with context.store_rows(name, stage.data, PreferenceRow, partial(stream_preferences, need=need)) as rows:
        metrics = _train(context, name, stage, rows)
    return f"accuracy {metrics['accuracy']:.1%} on {metrics['validation_samples']:.0f} held-out pairs"


def run_cost(context: Context, name: str, stage: Cost) -> str:
    """The cost model."""
    if stage.loss == "sign":
        with context.store_rows(name, stage.data, QARow, partial(stream_qa, need=_SAFETY)) as answers:
            require_both_classes((row.is_safe for row in answers), "is_safe", name)
            metrics = _train(context, name, stage, answers)
        return f"sign accuracy {metrics['sign_accuracy']:.1%} on {metrics['validation_samples']:.0f} held-out responses"
    need: tuple[PreferenceLabel, ...] = ("safer", "safe_flags")
    with context.store_rows(name, stage.data, PreferenceRow, partial(stream_preferences, need=need)) as pairs:
        flags = (flag for row in pairs for flag in (row.is_response_0_safe, row.is_response_1_safe))
        require_both_classes(flags, "is_response_*_safe", name)
        metrics = _train(context, name, stage, pairs)
    return (
        f"ranking accuracy {metrics['accuracy']:.1%}, sign accuracy {metrics['sign_accuracy']:.1%} "
        f"on {metrics['validation_samples']:.0f} held-out pairs"
    )


def run_moderation(context: Context, name: str, stage: Moderation) -> str:
    """A moderation model."""
    with context.store_rows(name, stage.data, QARow, partial(stream_qa, need=_SAFETY)) as rows:
        require_both_classes((row.is_safe for row in rows), "is_safe", f"moderation.{name}")
        metrics = _train(context, name, stage, rows)
    severity = f", severity {metrics['severity_accuracy']:.1%}" if "severity_accuracy" in metrics else ""
    return (
        f"accuracy {metrics['accuracy']:.1%}, F1 {metrics['f1']:.1%}, false positives "
        f"{metrics['false_positive_rate']:.1%}{severity} on {metrics['validation_samples']:.0f} held-out rows"
    )


def run_dpo(context: Context, name: str, stage: DPO) -> str:
    """A policy by direct preference optimisation.

    Raises CastorError when SafeDPO leaves out every pair, or policy and reference tokenise differently.
    """
    if stage.reference is not None:
        reference = context.folder.model_path(stage.reference)
        require_same_tokenizer(context.folder.model_path(stage.model), reference, f"the reference of {name}")
        stage = stage.model_copy(update={"reference": reference})
    need = stage.labels
    with context.store_rows(name, stage.data, PreferenceRow, partial(stream_preferences, need=need)) as stored:
        rows = stored.where(np.fromiter((first_of(stage, row) is not None for row in stored), np.bool_, len(stored)))
        if not rows:
            raise CastorError(f"{name}: in every pair both responses are unsafe, and safedpo learns from none of these")
        if len(rows) < len(stored):
            context.terminal.line(f"  left out {len(stored) - len(rows):,} pairs of two unsafe responses")
        metrics = _train(context, name, stage, rows)
    return (
        f"preference accuracy {metrics['accuracy']:.1%}, mean margin {metrics['margin_mean']:.2f} "
        f"on {metrics['validation_samples']:.0f} held-out pairs"
    )


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
            seed=context.seed(name),
            key=context.key,
            fresh=context.fresh,
            on_progress=show,
        )
