"""What `castor plan` prints: the memory of every actor, the parts of a step, who waits for whom, and what is faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from castor.config.pipeline import Config
from castor.dry_run.describe import memory_table
from castor.dry_run.placement import PlacedActors, Sizes, placed
from castor.dry_run.text import heading, table_of, text
from castor.planner.forecast import PARTS, Forecast, Traffic
from castor.planner.offer import Offer
from castor.planner.search import Alternative
from castor.run.stages.rlhf import RLHFStage

WORDS = {
    "rollout": "sampling",
    "judging": "judges and reference",
    "reference": "the reference alone",
    "values": "critics' values, advantages",
    "critics": "critics' updates",
    "learner": "the policy's update",
    "weights": "weights to the engines",
    "switching": "changes of turns",
}
NOTES = """\
Seconds are a model's, not a measurement: docs/scale.md says what it counts, what it was held against, and how far \
off it was. `waited` is what the loop waits for each part, the overlapped rest left out; together they are the step. \
`work` is what the part takes an actor of the group that does it."""


def describe(stage: RLHFStage, offer: Offer, traffic: Traffic, told: Forecast | None, problems: Sequence[str]) -> str:
    """What a run would hold (the models of `told`'s stage), and how long a step of it would take."""
    responses = stage.section.prompts_per_step * stage.section.samples_per_prompt
    lines = [
        f"{offer.gpus} GPUs, {offer.gpus_per_node} a node: {offer.told}."
        if not offer.device.is_cpu
        else f"{offer.told}.",
        f"{responses} responses a step of {traffic.lengths.mean:g} tokens in the mean (at most {traffic.lengths.cap}), "
        f"to prompts of {traffic.prompt:g}.",
        "",
    ]
    return "\n".join(
        [
            heading(f"{stage.name}: a step as the config has it"),
            text(*lines),
            *([text(*(f"It does not fit: {problem}." for problem in problems), "")] if problems else []),
            *(_told(told) if told is not None else []),
        ]
    )


def notes() -> str:
    """What the figures mean."""
    return text(NOTES)


def memory(stage: RLHFStage, sizes: Sizes) -> str:
    """What each actor is estimated to hold."""
    actors: dict[str, list[PlacedActors]] = {stage.name: [placed(each, sizes) for each in stage.actors()]}
    return "\n".join(
        [heading("Memory: what one actor is estimated to hold, in GiB"), text(memory_table(actors, "GiB"))]
    )


def _told(told: Forecast) -> list[str]:
    table = table_of(("part of a step", "waited s", "share", "work s"), ("waited s", "share", "work s"))
    for part in PARTS:
        waited, spent = told.parts[part], told.spent.get(part, 0.0)
        if waited or spent:
            table.add_row(WORDS[part], _seconds(waited), f"{waited / told.step_s:.0%}", _seconds(spent))
    table.add_section()
    table.add_row("a step", _seconds(told.step_s), "", "")
    groups = table_of(("group", "n", "busy", "idle", "waits most for", "..."), ("n", "busy", "idle", "..."))
    for name, group in told.groups.items():
        share = f"{group.idle[group.waits_for]:.0%}" if group.waits_for else ""
        groups.add_row(
            name, str(group.actors), f"{group.busy:.0%}", f"{1 - group.busy:.0%}", WORDS.get(group.waits_for, ""), share
        )
    return [
        text(table, ""),
        text(_summary(told), ""),
        heading("Who waits for whom: shares of a step"),
        text(groups, ""),
    ]


def _summary(told: Forecast) -> str:
    each = "response tokens/s a GPU" if told.gpus else "response tokens/s"
    cost = f", {told.gpu_seconds:,.0f} GPU-seconds a step" if told.gpus else ""
    return f"{told.response_tokens:,.0f} response tokens a step: {told.rate:,.0f} {each}{cost}."


def proposals(
    config: Config, stage: RLHFStage, offer: Offer, found: Sequence[Alternative], told: Forecast | None
) -> str:
    """The best split of each mode, and the keys that set the fastest ones."""
    if not found:
        return text("No split of these GPUs fits their memory: take more of them, or larger ones.", "")
    numbers = ("step s", "tokens/s/GPU", "GPU-s", "than now")
    table = table_of(("", "mode", *numbers, "GPUs"), numbers)
    for number, each in enumerate(found, start=1):
        saved = "" if told is None else f"{each.forecast.step_s / told.step_s - 1:+.0%}"
        cells = (_seconds(each.forecast.step_s), f"{each.forecast.rate:,.0f}", f"{each.forecast.gpu_seconds:,.0f}")
        table.add_row(str(number), mode(each), *cells, saved, split_told(each, stage.section.rollout.chunk_size))
    parts = [heading("The fastest split found of each mode"), text(table, "")]
    for number, each in enumerate(found, start=1):
        keys = " ".join(f"{key}={_plain(value)}" for key, value in changes(config, stage, offer, each).items())
        parts.append(text(f"{number}: {keys or 'as the config has it'}", ""))
    return "\n".join(parts)


def mode(each: Alternative) -> str:
    """Apart or in turns, and the staleness."""
    if each.split.colocate:
        return "in turns (colocate)"
    return f"apart, staleness {each.split.staleness}"


def split_told(each: Alternative, chunk_size: int) -> str:
    """Who has how many GPUs, and the size of chunks where it is not `chunk_size`."""
    split, parallel = each.split, each.stage.section.rollout.tensor_parallel_size
    signals = f", {split.signals} a judge" if split.signals else ""
    offload = ", critics' optimisers on the host" if split.critics_offload else ""
    chunk = f", chunks of {split.chunk}" if split.chunk != chunk_size else ""
    own = f", reference {split.reference}" if split.reference and not split.beside else ""
    beside = " with the reference" if split.beside else ""
    return f"rollout {split.rollout * parallel}, learner {split.learner}{beside}{own}{signals}{chunk}{offload}"


def changes(config: Config, stage: RLHFStage, offer: Offer, each: Alternative) -> dict[str, Any]:
    """The keys of the config that an alternative changes, by dotted name."""
    keys = {f"{stage.place}.{key}": value for key, value in each.split.changes(stage.section).items()}
    if config.ray.hardware is not None and config.ray.hardware.nodes < offer.hardware.nodes:
        keys["ray.hardware.nodes"] = offer.hardware.nodes
    return keys


def as_json(offer: Offer, traffic: Traffic, told: Forecast | None, problems: Sequence[str]) -> dict[str, Any]:
    """A run's part of `--json`."""
    return {
        "gpus": 0 if offer.device.is_cpu else offer.gpus,
        "device": offer.device.name,
        "prompt_tokens": traffic.prompt,
        "response_tokens": traffic.lengths.mean,
        "does_not_fit": list(problems),
        "step": None if told is None else step_json(told),
    }


def step_json(told: Forecast) -> dict[str, Any]:
    """A forecast in numbers."""
    return {
        "seconds": told.step_s,
        "gpus": told.gpus,
        "gpu_seconds": told.gpu_seconds,
        "response_tokens": told.response_tokens,
        "response_tokens_per_s_per_gpu": told.rate,
        "waited_s": dict(told.parts),
        "work_s": dict(told.spent),
        "groups": {
            name: {"actors": group.actors, "busy": group.busy, "idle": dict(group.idle)}
            for name, group in told.groups.items()
        },
    }


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2f}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
