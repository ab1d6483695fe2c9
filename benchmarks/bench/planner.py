"""How well `castor plan` foresees a step on this machine: seconds predicted over seconds measured.

`python -m benchmarks.bench.planner` calibrates the CPU, plans a small RLHF run with a critic (in turns with learning,
and overlapping it), carries the same config out with vLLM, DeepSpeed and Ray, and compares. The mean length of the
responses is taken from the run: how long they become is not the planner's to know.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bench.calibration import calibrate, make_model
from benchmarks.bench.measurement import Ratio, Section
from castor.config.cluster import RayCluster
from castor.config.pipeline import Config
from castor.dry_run.placement import Sizes
from castor.io.files import read_jsonl
from castor.io.terminal import Terminal
from castor.planner.device import Device
from castor.planner.forecast import Forecast, Traffic, forecast
from castor.planner.lengths import Lengths
from castor.run.plan import make_plan
from castor.run.stages.rlhf import RLHFStage
from castor.run.trackers.trackers import Trackers

LOW, HIGH = 0.85, 1.15  # wanted of predicted / measured
PARTS = ("rollout_s", "learn_s", "transfer_s")  # of a step; checkpoints are not the planner's


class Quiet(Terminal):
    """Tells nothing."""

    def line(self, text: Any) -> None:
        """One line."""


def count(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward that costs nothing to compute: the number of words."""
    return [len(response.split()) / 10 for response in responses]


def config(model: Path, folder: Path, staleness: int, steps: int) -> Config:
    """A run with one critic, whose judge is a function."""
    engine = {"zero_stage": 2, "micro_batch_tokens": 4096, "pack_length": 128}
    run = {
        "steps": steps,
        "prompts": {"source": "synthetic", "split": "train", "limit": 2000},
        "prompts_per_step": 64,
        "policy": {"model": str(model)},
        "signals": {
            "words": {
                "role": "objective",
                "function": "benchmarks.bench.planner:count",
                "critic_model": str(model),
                "critic": engine,
            }
        },
        "rollout": {
            "max_prompt_tokens": 64,
            "max_new_tokens": 64,
            "max_num_seqs": 64,
            "chunk_size": 16,
            "max_staleness": staleness,
        },
        "learner": {"engine": engine},
        "checkpoint": {"every_minutes": None, "every_steps": None},
    }
    return Config.model_validate({"run_dir": str(folder), "rlhf": {"run": run}})


def carried_out(settings: Config) -> list[dict[str, float]]:
    """Metrics of the steps of a run, on the cluster that is up."""
    from trainers.pipeline import Pipeline

    plan = make_plan(settings)
    Pipeline(plan, Quiet(), Trackers([]), lambda engines: None).run_stage(plan.stage("run"))
    return [each["metrics"] for each in read_jsonl(plan.files.stage("run").steps)]


def foreseen(settings: Config, device: Device, response_tokens: float, prompt_tokens: float) -> Forecast:
    """A step of a run on a device."""
    plan = make_plan(settings)
    stage = plan.stage("run")
    assert isinstance(stage, RLHFStage)
    lengths = Lengths(response_tokens, stage.section.rollout.max_new_tokens)
    return forecast(stage, Sizes(plan), device, 8, Traffic(prompt_tokens, lengths))


def measure(smoke: bool) -> Section:
    """Predicted over measured seconds of a step, at a staleness of 0 and of 1; a value for every measured step."""
    from actors.cluster import cluster

    ratios, figures = [], dict[str, float]()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        model = make_model(Path(place) / "model")
        device = calibrate(model, 2 if smoke else 3)
        figures |= {f"calibration {key}": value for key, value in asdict(device).items() if key != "name"}
        stack.enter_context(cluster(RayCluster(num_cpus=2)))
        for staleness in (0, 1):
            settings = config(model, Path(place) / str(staleness), staleness, 4 if smoke else 9)
            steps = carried_out(settings)[1 + staleness :]
            responses = settings.rlhf["run"].prompts_per_step
            tokens, sampled = (sum(step[key] for step in steps) / len(steps) for key in ("tokens", "response_tokens"))
            told = foreseen(settings, device, sampled / responses, (tokens - sampled) / responses)
            seconds = [sum(step[part] for part in PARTS) for step in steps]
            name = f"step predicted / measured, staleness {staleness}"
            ratios.append(Ratio(name, tuple(told.step_s / each for each in seconds), LOW, HIGH))
            figures[f"predicted step, staleness {staleness} (s)"] = told.step_s
            figures |= {f"predicted wait for {part}, staleness {staleness} (s)": s for part, s in told.parts.items()}
            for part in PARTS:
                mean = sum(step[part] for step in steps) / len(steps)
                figures[f"measured {part.removesuffix('_s')}, staleness {staleness} (s)"] = mean
    return Section("planner", tuple(ratios), figures)


def main() -> None:
    """Print the section as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="fewer steps and repetitions")
    section = measure(parser.parse_args().smoke)
    told = {each.name: {"median": each.median, "values": each.values, "holds": each.holds} for each in section.ratios}
    print(json.dumps({"ratios": told, "figures": section.figures}, indent=2))


if __name__ == "__main__":
    main()
