"""`castor plan CONFIG`: how long a step of its RLHF runs would take, who waits for whom, and what would be faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from castor.io.errors import CastorError

if TYPE_CHECKING:
    from castor.config.pipeline import Config
    from castor.dry_run.placement import Sizes
    from castor.planner.forecast import Traffic
    from castor.planner.offer import Offer
    from castor.run.plan import Plan
    from castor.run.stages.rlhf import RLHFStage

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/llama-8b/ppo_lag.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="overrides, or YAML files laid over CONFIG, as of castor pipeline"),
]
Runs = Annotated[list[str] | None, typer.Option("--run", help="only this RLHF run (may be repeated); default: all")]
GPUs = Annotated[
    int | None, typer.Option("--gpus", min=1, metavar="N", help="GPUs to split; default: what the config says it has")
]
GPUType = Annotated[str | None, typer.Option("--gpu-type", help="H100 (the default), H200, A100, ...")]
Cluster = Annotated[
    Path | None, typer.Option("--cluster", metavar="FILE", help="take GPUs from the node types of a cluster.yaml")
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration", metavar="FILE", help="figures of a device, as `python -m benchmarks.bench.calibration` writes"
    ),
]
ResponseTokens = Annotated[
    float | None,
    typer.Option("--response-tokens", min=1, metavar="MEAN", help="of a response; default: half of max_new_tokens"),
]
PromptTokens = Annotated[
    float | None,
    typer.Option("--prompt-tokens", min=1, metavar="MEAN", help="of a prompt; default: half of max_prompt_tokens"),
]
AsJSON = Annotated[bool, typer.Option("--json", help="print the figures as JSON")]


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    run: Runs = None,
    gpus: GPUs = None,
    gpu_type: GPUType = None,
    cluster: Cluster = None,
    calibration: Calibration = None,
    response_tokens: ResponseTokens = None,
    prompt_tokens: PromptTokens = None,
    as_json: AsJSON = False,
) -> None:
    """What a step of CONFIG's RLHF runs would take: memory, seconds, who waits for whom, and which split is faster.

    Starts nothing. The seconds are those of a model, which docs/scale.md describes.
    """
    from castor.config.load import load_config
    from castor.dry_run.placement import Sizes
    from castor.run.check import check
    from castor.run.plan import make_plan

    made = make_plan(load_config(config, overrides or []))
    check(made)
    told: dict[str, Any] = {}
    sizes = Sizes(made)
    for stage in _chosen(made, run, config):
        traffic = _traffic(stage, response_tokens, prompt_tokens)
        offer = _offer(made, stage, gpus, gpu_type, cluster, calibration)
        told[stage.name] = _tell(made.config, stage, sizes, offer, traffic, quiet=as_json)
    if as_json:
        print(json.dumps(told, indent=2))


def _chosen(made: Plan, names: list[str] | None, config: Path) -> list[RLHFStage]:
    stages: dict[str, Any] = {stage.name: stage for stage in made.of_kind("rlhf")}
    if not stages:
        raise CastorError(f"{config} has no RLHF run to plan: castor pipeline {config} --dry-run shows its memory")
    for name in names or ():
        if name not in stages:
            raise CastorError(f"{config} has no RLHF run {name!r}: it has {', '.join(stages)}")
    return [stages[name] for name in names or stages]


def _traffic(stage: RLHFStage, response_tokens: float | None, prompt_tokens: float | None) -> Traffic:
    from castor.planner.forecast import Traffic
    from castor.planner.lengths import Lengths

    rollout = stage.section.rollout
    for name, value, most in (
        ("--response-tokens", response_tokens, rollout.max_new_tokens),
        ("--prompt-tokens", prompt_tokens, rollout.max_prompt_tokens),
    ):
        if value is not None and value > most:
            raise CastorError(f"{name} {value:g} is over what {stage.place} allows, {most}: give at most that")
    mean = response_tokens or rollout.max_new_tokens / 2
    return Traffic(prompt_tokens or rollout.max_prompt_tokens / 2, Lengths(mean, rollout.max_new_tokens))


def _offer(
    made: Plan,
    stage: RLHFStage,
    gpus: int | None,
    gpu_type: str | None,
    cluster: Path | None,
    calibration: Path | None,
) -> Offer:
    from castor.planner.device import read_device
    from castor.planner.offer import Offer, make_offer

    needed = sum(bundle.gpus for bundle in made.bundles(stage))
    if calibration is not None:
        if gpu_type is not None or cluster is not None:
            raise CastorError("--calibration says what the device is: leave --gpu-type and --cluster out")
        device = read_device(calibration)
        if not device.is_cpu:
            return Offer(device, gpus or needed or 1, made.config.ray.gpus_per_node, f"{device.name} ({calibration})")
        if needed or gpus:
            raise CastorError(f"{calibration} is of a CPU, and the plan has GPUs: take a config without, and no --gpus")
        return Offer(device, 0, made.config.ray.gpus_per_node, f"{device.name} ({calibration})")
    if not needed and gpus is None and cluster is None:
        raise CastorError(
            f"{stage.place} computes on CPUs, whose speed only a measurement tells: run `python -m "
            "benchmarks.bench.calibration > cpu.json` and add --calibration cpu.json, or plan GPUs with --gpus N"
        )
    return make_offer(made.config, needed, gpus, gpu_type, cluster)


def _tell(
    config: Config, stage: RLHFStage, sizes: Sizes, offer: Offer, traffic: Traffic, *, quiet: bool
) -> dict[str, Any]:
    from castor.planner import describe
    from castor.planner.forecast import forecast
    from castor.planner.search import findings, search
    from castor.run.bundles import make_bundles

    reserved = sum(bundle.gpus for bundle in make_bundles(stage.actors(), offer.gpus_per_node))
    problems = findings(stage, sizes, offer) if reserved and not offer.device.is_cpu else []
    told = None
    if not problems and (reserved or offer.device.is_cpu):
        told = forecast(stage, sizes, offer.device, offer.gpus_per_node, traffic)
    found = [] if offer.device.is_cpu else search(stage, sizes, offer, traffic)
    if not quiet:
        print(describe.describe(stage, offer, traffic, told, problems))
        print(describe.memory(stage if told or not found else found[0].stage, sizes))
        if not offer.device.is_cpu:
            print(describe.proposals(config, stage, offer, found, told))
        print(describe.notes())
    chunk_size = stage.section.rollout.chunk_size
    return describe.as_json(offer, traffic, told, problems) | {
        "alternatives": [
            {
                "mode": describe.mode(each),
                "split": describe.split_told(each, chunk_size),
                "keys": describe.changes(config, stage, offer, each),
                "step": describe.step_json(each.forecast),
            }
            for each in found
        ]
    }
