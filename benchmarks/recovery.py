"""What failures cost an RLHF run, and whether it ends the same: `python -m benchmarks.recovery RUN`.

RUN is a finished run (`make demo` leaves runs/demo). Its first RLHF section with a constraint is run again for some
steps, undisturbed, and once more for every kind of actor, of which one process is killed (SIGKILL) after the third
step. The table says, in seconds, how long it took until the run told of the death, and until the next step was done
that had not been done before; and how many steps were taken again. Above it, what checkpoints cost: size, the share of
the time in which the run waited for them, and how much longer a step takes beside which one is written. With `--soak
KILLS`, one run in which random processes are killed at random moments. Every disturbed run must end with the weights,
multipliers and metrics of the undisturbed one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from actors.cluster import cluster
from castor.config.load import load_config
from castor.config.pipeline import Config
from castor.io.files import read_json, read_jsonl, sha256_file
from castor.io.terminal import Terminal
from castor.run.plan import Plan, make_plan
from castor.run.trackers.trackers import Trackers
from trainers.pipeline import Pipeline

KINDS = {  # what the title of a process of each kind has in it
    "rollout worker": "RolloutWorker",
    "judge and critic": "SignalWorker",
    "reference": "ReferenceWorker",
    "learner": "LearnerWorker",
    "multiplier owner": "MultiplierOwner",
}
KILL_AFTER = 3  # steps
EVERY_STEPS = 2  # between checkpoints


class Timed(Terminal):
    """Notes when each line was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, str]] = []

    def line(self, text: Any) -> None:
        """One line."""
        self.told.append((time.monotonic(), str(text)))

    def steps(self) -> list[tuple[float, int]]:
        """When each step was told, those that were taken again included."""
        words = ((when, text.split()) for when, text in self.told)
        return [(when, int(each[2].split("/")[0])) for when, each in words if each[:2] == ["run", "step"]]


@dataclass
class Kill:
    """A process that was killed."""

    kind: str
    when: float
    step: int  # the last one that was told


@dataclass
class Outcome:
    """One run of the section."""

    terminal: Timed
    kills: list[Kill]
    result: tuple[Any, ...]  # what must be the same
    restarts: int
    records: list[dict[str, Any]]
    checkpoint_mib: float


def carry_out(config: Config, folder: Path, disturb: Callable[[Timed, list[Kill], threading.Event], None]) -> Outcome:
    """Run the section in `folder` while a thread disturbs it."""
    plan = make_plan(config.model_copy(update={"run_dir": folder}))
    terminal, kills, done, sizes = Timed(), list[Kill](), threading.Event(), list[int]()
    threads = [
        threading.Thread(target=disturb, args=(terminal, kills, done)),
        threading.Thread(target=_measure, args=(plan, sizes, done)),
    ]
    for thread in threads:
        thread.start()
    try:
        tracker = Trackers([])
        Pipeline(plan, terminal, tracker, lambda engines: None).run_stage(plan.stage("run"))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    files = plan.files.stage("run")
    weights = {path.name: sha256_file(path) for path in files.policy.iterdir()}
    records = read_jsonl(files.steps)
    numbers = [{k: v for k, v in step["metrics"].items() if not k.endswith("_s")} for step in records]
    result = weights, numbers, read_json(files.multipliers), read_jsonl(files.ledger)
    restarts = read_json(files.run_record)["restarts"]
    return Outcome(terminal, kills, result, restarts, records, max(sizes, default=0) / 2**20)


def _measure(plan: Plan, sizes: list[int], done: threading.Event) -> None:
    """Sizes of the checkpoints that come by."""
    training = plan.files.stage("run").training
    while not done.wait(0.5):
        for checkpoint in training.checkpoints():
            sizes.append(sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()))


def kill_one(kind: str, choice: random.Random) -> bool:
    """Kill a process of this kind below this one; False when there is none."""
    found = [each for each in psutil.Process().children(recursive=True) if KINDS[kind] in " ".join(_title(each))]
    if found:
        choice.choice(sorted(found, key=lambda each: each.pid)).kill()
    return bool(found)


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def once(kind: str) -> Callable[[Timed, list[Kill], threading.Event], None]:
    """Kills a process of this kind after the third step."""

    def disturb(terminal: Timed, kills: list[Kill], done: threading.Event) -> None:
        while not done.wait(0.02):
            steps = terminal.steps()
            if steps and steps[-1][1] == KILL_AFTER and kill_one(kind, random.Random(0)):
                kills.append(Kill(kind, time.monotonic(), KILL_AFTER))
                return

    return disturb


def soak(count: int, seed: int, between_s: float) -> Callable[[Timed, list[Kill], threading.Event], None]:
    """Kills that many processes of random kinds, at random moments once the first step is done."""

    def disturb(terminal: Timed, kills: list[Kill], done: threading.Event) -> None:
        choice = random.Random(seed)
        while len(kills) < count and not done.wait(0.1):
            if not terminal.steps() or done.wait(choice.expovariate(1 / between_s)):
                continue
            kind = choice.choice(list(KINDS))
            if kill_one(kind, choice):
                kills.append(Kill(kind, time.monotonic(), terminal.steps()[-1][1]))

    return disturb


def undisturbed(terminal: Timed, kills: list[Kill], done: threading.Event) -> None:
    """Lets it run."""


def section(run: Path, steps: int, prompts: int | None, kills: int) -> Config:
    """The config of a run with one section alone, whose models are those that RUN has made.

    `prompts` are those of a step; None: as many as in RUN.
    """
    whole = load_config(run / "config.yaml")
    plan = make_plan(whole.model_copy(update={"run_dir": run}))
    stage = next(stage for stage in plan.of_kind("rlhf") if stage.section.constraints)
    values = stage.section.model_dump(mode="json")
    for read in stage.models():
        place, (*path, last) = values, read.key.split(".")
        for key in path:
            place = place[key]
        place[last] = plan.model(read.reference).name
    values |= {"steps": steps, "max_restarts": kills, "checkpoint": {"every_steps": EVERY_STEPS}}
    if prompts is not None:
        values["prompts_per_step"] = prompts
    values["rollout"]["max_worker_restarts"] = max(kills, values["rollout"]["max_worker_restarts"])
    return Config.model_validate(
        {"run_dir": run, "seed": whole.seed, "template": whole.template, "rlhf": {"run": values}}
    )


def report(outcome: Outcome, calm: Outcome) -> str:
    """A row of the table."""
    (kill,) = outcome.kills
    steps = outcome.terminal.steps()
    told = [when for when, text in outcome.terminal.told if "lost an actor" in text]
    onward = next(when for when, step in steps if when > kill.when and step > kill.step)
    again = len(steps) - len({step for _, step in steps})
    detected = f"{told[0] - kill.when:8.1f}" if told else "       –"
    same = "yes" if outcome.result == calm.result else "NO"
    return f"{kill.kind:<18} {detected} {onward - kill.when:9.1f} {again:6d} {outcome.restarts:9d}   {same}"


def price(calm: Outcome) -> str:
    """What checkpoints cost: their size, and the share of the time in which the run waited for them."""
    laps = ("rollout_s", "learn_s", "checkpoint_s", "transfer_s")
    steps = calm.records[1:]
    whole = {step["step"]: sum(step["metrics"][lap] for lap in laps) for step in steps}
    waited = [step["metrics"]["checkpoint_s"] for step in steps]
    # what is copied and written beside the steps takes from cores and memory that they would have
    beside, alone = (
        statistics.median(seconds for step, seconds in whole.items() if ((step - 1) % EVERY_STEPS == 0) is after)
        for after in (True, False)
    )
    return (
        f"a step {statistics.median(whole.values()):.2f} s; a checkpoint every {EVERY_STEPS} steps, of "
        f"{calm.checkpoint_mib:.1f} MiB: waited for {sum(waited) / sum(whole.values()):.1%} of the time, "
        f"{1000 * max(waited):.0f} ms at most; a step beside which one is written takes {beside / alone - 1:+.1%}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prompts", type=int, help="prompts of a step; default: as many as in RUN")
    parser.add_argument("--soak", type=int, metavar="KILLS", help="instead of the table: one run with random kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--between-s", type=float, default=20.0, help="mean seconds between the kills of a soak")
    args = parser.parse_args()
    config = section(args.run, args.steps, args.prompts, args.soak or 1)
    with cluster(load_config(args.run / "config.yaml").ray), tempfile.TemporaryDirectory() as place:
        calm = carry_out(config, Path(place) / "calm", undisturbed)
        print(price(calm))
        if args.soak:
            outcome = carry_out(config, Path(place) / "soak", soak(args.soak, args.seed, args.between_s))
            for kind in KINDS:
                print(f"{kind:<18} killed {sum(kill.kind == kind for kill in outcome.kills)} times")
            same = "the same" if outcome.result == calm.result else "NOT the same"
            print(f"restarts of groups: {outcome.restarts}; {same}")
            return
        print(f"{'killed':<18} detected   onward  again  restarts   the same")
        for number, kind in enumerate(KINDS):
            print(report(carry_out(config, Path(place) / str(number), once(kind)), calm), flush=True)


if __name__ == "__main__":
    main()
