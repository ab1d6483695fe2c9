"""The supervised stages of the pipeline: SFT, reward, cost and moderation models, DPO. Each returns a line about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np

from actors.progress import Progress
from castor.config.data import DataSource
from castor.config.dpo import DPO
from castor.config.moderation import Moderation
from castor.config.preference import Cost, Reward
from castor.config.supervised import SFT, Supervised
from castor.data.rows.load import PreferenceLabel, QALabel, stream_demonstrations, stream_preferences, stream_qa
from castor.data.rows.mixture import Mixture
from castor.data.rows.schemas import PreferenceRow, QARow
from castor.data.sources.report import require_both_classes
from castor.data.tokens.template import require_same_tokenizer
from castor.io.errors import CastorError
from castor.models.backbone import load_config
from castor.models.head_kind import HeadKind
from castor.models.start import start_line
from trainers.stage_run import StageRun
from trainers.supervised.driver import run_supervised
from trainers.supervised.tasks.dpo import first_of

_SAFETY: tuple[QALabel, ...] = ("is_safe",)


def run_sft(run: StageRun) -> str:
    """Supervised fine-tuning."""
    stage: SFT = run.section
    metrics = _train(run, stage, run.rows.store(stage.data, QARow, stream_demonstrations))
    return f"validation perplexity {metrics['validation_perplexity']:.2f}"


def run_reward(run: StageRun) -> str:
    """The reward model."""
    stage: Reward = run.section
    need: tuple[PreferenceLabel, ...] = ("better",)
    rows = run.rows.store(stage.data, PreferenceRow, partial(stream_preferences, need=need))
    metrics = _train(run, stage, rows, "reward")
    return f"accuracy {metrics['accuracy']:.1%} on {metrics['validation_samples']:.0f} held-out pairs"


def run_cost(run: StageRun) -> str:
    """The cost model."""
    stage: Cost = run.section
    if stage.loss == "sign":
        metrics = _train(run, stage, _labelled_answers(run, stage.data, run.name), "cost")
        return f"sign accuracy {metrics['sign_accuracy']:.1%} on {metrics['validation_samples']:.0f} held-out responses"
    metrics = _train(run, stage, _labelled_pairs(run, stage), "cost")
    return (
        f"ranking accuracy {metrics['accuracy']:.1%}, sign accuracy {metrics['sign_accuracy']:.1%} "
        f"on {metrics['validation_samples']:.0f} held-out pairs"
    )


def run_moderation(run: StageRun) -> str:
    """A moderation model."""
    stage: Moderation = run.section
    metrics = _train(run, stage, _labelled_answers(run, stage.data, run.stage.place), stage.taxonomy)
    severity = f", severity {metrics['severity_accuracy']:.1%}" if "severity_accuracy" in metrics else ""
    return (
        f"accuracy {metrics['accuracy']:.1%}, F1 {metrics['f1']:.1%}, false positives "
        f"{metrics['false_positive_rate']:.1%}{severity} on {metrics['validation_samples']:.0f} held-out rows"
    )


def run_dpo(run: StageRun) -> str:
    """A policy by direct preference optimisation.

    Raises CastorError when SafeDPO leaves out every pair, or policy and reference tokenise differently.
    """
    stage: DPO = run.section
    reference = run.models.get("reference")
    if reference is not None:
        require_same_tokenizer(run.models["model"].name, reference.name, f"the reference of {run.name}")
    metrics = _train(run, stage, _useful_pairs(run, stage))
    return (
        f"preference accuracy {metrics['accuracy']:.1%}, mean margin {metrics['margin_mean']:.2f} "
        f"on {metrics['validation_samples']:.0f} held-out pairs"
    )


@contextmanager
def _labelled_answers(run: StageRun, data: Sequence[DataSource], place: str) -> Iterator[Mixture[QARow]]:
    """Answers of which it is known whether they are safe; some are, and some are not."""
    with run.rows.store(data, QARow, partial(stream_qa, need=_SAFETY)) as rows:
        require_both_classes((row.is_safe for row in rows), "is_safe", place)
        yield rows


@contextmanager
def _labelled_pairs(run: StageRun, stage: Cost) -> Iterator[Mixture[PreferenceRow]]:
    """Pairs of which it is known which is safer and which are safe; some are, and some are not."""
    need: tuple[PreferenceLabel, ...] = ("safer", "safe_flags")
    with run.rows.store(stage.data, PreferenceRow, partial(stream_preferences, need=need)) as pairs:
        flags = (flag for row in pairs for flag in (row.is_response_0_safe, row.is_response_1_safe))
        require_both_classes(flags, "is_response_*_safe", run.name)
        yield pairs


@contextmanager
def _useful_pairs(run: StageRun, stage: DPO) -> Iterator[Mixture[PreferenceRow]]:
    """Pairs that the stage's loss learns from. Raises CastorError when there is none."""
    with run.rows.store(stage.data, PreferenceRow, partial(stream_preferences, need=stage.labels)) as stored:
        rows = stored.where(np.fromiter((first_of(stage, row) is not None for row in stored), np.bool_, len(stored)))
        if not rows:
            raise CastorError(
                f"{run.name}: in every pair both responses are unsafe, and safedpo learns from none of these"
            )
        if len(rows) < len(stored):
            run.terminal.line(f"  left out {len(stored) - len(rows):,} pairs of two unsafe responses")
        yield rows


def validation_line(stage: Supervised, progress: Progress) -> str | None:
    """What a validation found, in words, and where that leaves early stopping; None for a step of training."""
    found = {
        name.removeprefix("validation/"): value
        for name, value in progress.metrics.items()
        if name.startswith("validation/")
    }
    if not found:
        return None
    shown = [name for name in ("validation_loss", stage.best.metric if stage.best else "accuracy") if name in found]
    shown = list(dict.fromkeys(shown)) or list(found)[:1]
    told = f"step {progress.done} of {progress.total}: {', '.join(f'{name} {found[name]:.4g}' for name in shown)}"
    if stage.best is None:
        return told
    since = int(found["since_best"])
    if since == 0:
        return f"{told} (the best so far)"
    told += f" (the best was step {found['best_step']:.0f}"
    if stage.patience is None:
        return f"{told})"
    return f"{told}; {since} of {stage.patience} in a row without a better one" + (
        ": stops early)" if since >= stage.patience else ")"
    )


def _train(
    run: StageRun, stage: Supervised, rows: AbstractContextManager[Sequence[Any]], head: HeadKind | None = None
) -> dict[str, float]:
    """Train on Ray Train; `rows` are entered while the workers start. `head` is what the stage puts on a backbone."""
    load_config(run.models["model"])  # a model that cannot be loaded is refused before workers are started for it
    if head is not None and (told := start_line(run.models["model"], head)) is not None:
        run.terminal.line(f"  {run.name} {told}")
    run.tracker.declare()
    note = ""
    with run.terminal.bar(run.name) as bar:

        def show(progress: Progress) -> None:
            nonlocal note
            run.beginning.first("step")
            if (told := validation_line(stage, progress)) is not None:
                run.terminal.line(f"  {run.name} {told}")
            else:
                note = f"loss {progress.metrics['loss']:.3f}  {progress.metrics['tokens_per_s']:,.0f} tokens/s"
            bar.update(progress.done, progress.total, note)
            if progress.done:
                run.tracker.log(run.name, progress.done, progress.metrics)

        return run_supervised(
            stage,
            model=run.models["model"],
            rows=rows,
            files=run.files,
            template=run.template,
            seed=run.seed,
            claim=run.claim,
            terminal=run.terminal,
            bundles=run.bundles,
            reference=run.models.get("reference"),
            on_progress=show,
            beginning=run.beginning,
            profile=run.profile,
        )
