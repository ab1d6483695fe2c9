"""One small RLHF run that tests disturb, and the ways in which they do."""

import os
import signal
from contextlib import nullcontext

import ray

from castor.config.pipeline import Config
from castor.io.files import read_json, read_jsonl, sha256_file
from castor.run.ledger import Entry, Terms, check_ledger
from castor.run.plan import make_plan
from castor.run.trackers.trackers import Trackers
from tests.plans import Lines
from trainers.pipeline import Pipeline
from trainers.rlhf.groups import Groups

STEPS = 10
ENGINE = {
    "micro_batch_tokens": 1024,
    "pack_length": 128,
    "optimizer": {"lr": 1e-3, "lr_scheduler_type": "cosine", "lr_warmup_ratio": 0.1},
}
ROLLOUT = {"max_prompt_tokens": 64, "max_new_tokens": 16, "chunk_size": 4, "max_num_seqs": 16, "kv_cache_mib": 64}
JUDGED = {"role": "objective", "function": "judge:score", "critic": ENGINE}
JUDGE = """
from pathlib import Path

def score(prompts, responses):
    if Path({flag!r}).exists():
        raise RuntimeError("the judge is out of order")
    return [float(len(response) % 7) for response in responses]
"""


class Screen(Lines):
    """Keeps what it is told, and has a bar."""

    def bar(self, name):
        class Bar:
            def update(self, *args):
                """Nothing is shown."""

        return nullcontext(Bar())

    def tell_of_ending(self):
        self.lines.append("ending")

    def steps(self):
        """(when, step) of all that was told, as `benchmarks.recovery` wants it."""
        return [(0.0, int(line.split()[2].split("/")[0])) for line in self.lines if line.startswith("run step")]


class Run:
    """One run of a folder: PPO-Lag with two ranks, critics, PTX, a judge of one's own and an adapted KL coefficient."""

    def __init__(self, folder, models, earlier=(), **changes):
        """`earlier` are the names of runs of one step that come before it in the pipeline."""
        judge = folder.parent / "judge.py"
        self.flag = folder.parent / "out-of-order"
        judge.write_text(JUDGE.format(flag=str(self.flag)))
        section = {
            "steps": STEPS,
            "prompts": {"limit": 10},
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "policy": {"model": models.policy},
            "signals": {
                "own": JUDGED | {"critic_model": models.reward},
                "harm": {"role": "constraint", "model": models.cost, "threshold": -0.2, "critic": ENGINE},
            },
            "multipliers": {"lambda_init": 0.5, "lambda_lr": 0.5, "episode_cost_window_size": 16, "rule": "adam_log"},
            "advantage": {"kl_target": 0.5},
            "rollout": ROLLOUT,
            "learner": {"ranks": 2, "engine": ENGINE, "ptx": {"data": {"limit": 20}, "batch_size": 4}},
            "checkpoint": {"every_steps": 1},
        }  # fmt: skip
        changes["signals"] = section["signals"] | changes.get("signals", {})
        section |= changes
        runs = {name: section | {"steps": 1} for name in earlier} | {"run": section}
        self.plan = make_plan(Config.model_validate({"run_dir": folder, "seed": 3, "rlhf": runs}))
        self.stage, self.files = self.plan.stage("run"), self.plan.files.stage("run")
        self.screen = Screen()

    def at(self, what, act):
        """Do something the first time that a step, or a line with this text, is told of."""
        tell, done = self.screen.line, []
        wanted = f"step {what:>3}/{STEPS}" if isinstance(what, int) else what

        def line(text):
            tell(text)
            if wanted in text and not done:
                done.append(text)
                act()

        self.screen.line = line

    @property
    def pipeline(self):
        """That of its plan."""
        return Pipeline(self.plan, self.screen, Trackers([]), lambda engines: None)

    def go(self, **options):
        """Run, or go on with, the stage."""
        self.pipeline.run_stage(self.stage, **options)

    def numbers(self):
        """Everything it logged but the seconds."""
        return [
            {**step, "metrics": {k: v for k, v in step["metrics"].items() if not k.endswith("_s")}}
            for step in read_jsonl(self.files.steps)
        ]

    def ledger(self):
        """What it was trained on, once that has held against its terms."""
        entries = [Entry.from_json(values) for values in read_jsonl(self.files.ledger)]
        assert check_ledger(entries, Terms(**read_json(self.files.run_record)["ledger"])) == len(self.numbers())
        return entries

    def result(self):
        """What must be equal in a run that was cut short: numbers, weights, multipliers, what it was trained on."""
        weights = {path.name: sha256_file(path) for path in self.files.policy.iterdir()}
        return self.numbers(), weights, read_json(self.files.multipliers), self.ledger()


def kill(actor, whose=lambda actor: os.getpid()):
    """End the process of an actor, or one that it tells."""
    process = ray.get(actor.__ray_call__.remote(whose), timeout=60)
    os.kill(process, signal.SIGKILL)
    return process


def engine_process(worker):
    """That of vLLM's core, beside a rollout worker."""
    (process,) = {*worker.engine.watch()} - {os.getpid()}
    return process


def watched_groups(monkeypatch):
    """Lists of the `Groups` that are made from now on, and of the names of the groups that they start."""
    made, started = [], []

    class WatchedGroups(Groups):
        def __init__(self, *args, **options):
            made.append(self)
            super().__init__(*args, **options)

        def _start(self, name):
            started.append(name)
            return super()._start(name)

    monkeypatch.setattr("trainers.rlhf.stage.Groups", WatchedGroups)
    return made, started
