"""What overlapping rollout and learning gains: steps per second at max_staleness 1 against 0, same run, same machine.

`python -m benchmarks.asynchrony runs/demo` takes the policy and the score models of a finished run and its first RLHF
section, objectives alone and without PTX. The two take turns on the same actors, starting over each time; the first
step of a turn, which has nothing to overlap with, is left out. Without cores for both there is nothing to gain: the
number of cores is printed too.
"""

import argparse
import os
import tempfile
from pathlib import Path

from actors.cluster import cluster
from actors.folder_weights import FolderWeights
from actors.group import get
from actors.reservation import reserve
from actors.signal import SignalModels
from castor.config.load import load_config
from castor.config.rlhf import RLHF
from castor.data.rows.load import load_prompts
from castor.data.sources.report import RowReport
from castor.data.tokens.prompt_stream import Prompt, PromptStream
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.model_reference import ModelReference
from castor.run.plan import make_plan
from castor.run.stages.rlhf import RLHFStage
from trainers.rlhf.groups import Groups
from trainers.rlhf.loop import train
from trainers.rlhf.producer import Producer


def seconds_per_step(
    groups: Groups, config: RLHF, policy: ModelReference, signals: dict[str, SignalModels], prompts: list[Prompt]
) -> tuple[float, ...]:
    """Mean seconds of a step after the first: whole, the learner waited, the rollout waited."""
    loading = groups.learner.call("load", policy, config, 0, "auto", None)
    for name, group in groups.signals.items():
        loading += group.call("load", name, signals[name], config, 0)
    get(loading, 900, "loading")
    source = FolderWeights.remote()  # type: ignore[attr-defined]  # Ray adds it
    groups.rollout.config = config.rollout
    groups.rollout.load_weights(get(source.publish.remote(policy, 0), 120, "publishing"))
    rows: list[dict[str, float]] = []
    stream = PromptStream(prompts, config.prompts_per_step, 0)
    train(config, groups, Producer(config, groups, stream, 0, 1), lambda step: rows.append(step.metrics))
    rows = rows[1:]
    whole = [row["rollout_s"] + row["learn_s"] + row["transfer_s"] for row in rows]
    learner = [row["rollout_s"] for row in rows]
    rollout = [row.get("rollout_waited_s", row["learn_s"] + row["transfer_s"]) for row in rows]
    return tuple(sum(column) / len(rows) for column in (whole, learner, rollout))


def with_staleness(config: RLHF, max_staleness: int) -> RLHF:
    """The same run at another staleness."""
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_staleness": max_staleness})})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    whole = load_config(args.run / "config.yaml")
    section = next(iter(whole.rlhf.values()))
    objectives = {
        name: signal for name, signal in section.signals.items() if signal.role == "objective" and signal.model
    }
    learner = section.learner.model_copy(update={"ptx": None})
    fewer = {"steps": args.steps, "signals": objectives, "multipliers": None, "learner": learner}
    config = section.model_copy(update=fewer)
    plan, stage = make_plan(whole.model_copy(update={"run_dir": args.run})), RLHFStage("bench", "rlhf.bench", config)
    policy = plan.model(section.policy.model)
    models = {name: plan.model(signal.model).name for name, signal in objectives.items() if signal.model}
    signals = {name: SignalModels(model, model, policy) for name, model in models.items()}
    template = PromptTemplate(load_tokenizer(policy), whole.template)
    prompts = [template.tokenised(prompt) for prompt in load_prompts(section.prompts, RowReport())]
    modes = {k: with_staleness(config, k) for k in (0, 1)}
    measured: dict[int, list[tuple[float, ...]]] = {k: [] for k in modes}
    with (
        cluster(whole.ray),
        tempfile.TemporaryDirectory() as state,
        reserve(plan.bundles(stage), stage.name) as reservation,
        Groups(
            config, actors={each.name: each for each in stage.actors()}, reservation=reservation, policy=policy,
            signals=signals, limits={},
            template=whole.template, seed=0, ptx_rows=None, multipliers_file=Path(state) / "multipliers.json",
        ) as groups,
    ):  # fmt: skip
        for _ in range(args.turns):
            for k, mode in modes.items():
                measured[k].append(seconds_per_step(groups, mode, policy, signals, prompts))
    print(f"{os.cpu_count()} cores; seconds of a step, the best of {args.turns} turns")
    best = {k: min(turns) for k, turns in measured.items()}
    for k, (seconds, learning, sampling) in best.items():
        print(f"max_staleness {k}: {seconds:.2f} s   the learner waited {learning:.2f} s, the rollout {sampling:.2f} s")
    print(f"ratio of steps per second, 1 against 0: {best[0][0] / best[1][0]:.2f}")


if __name__ == "__main__":
    main()
