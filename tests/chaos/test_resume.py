"""An RLHF run that is cut short, and the same run that is not: the same numbers, the same weights, the same data."""

import pytest

from castor.config.pipeline import Config
from castor.config.wandb import WandB
from castor.io.checkpoint import verify_folder
from castor.io.errors import CastorError
from castor.io.files import read_json, read_jsonl, sha256_file
from castor.run.checkpoints import Checkpoints
from castor.run.ledger import Entry, Terms, check_ledger
from castor.run.plan import make_plan
from castor.run.tracking import Tracker
from tests.plans import Lines
from trainers.pipeline import Pipeline

STEPS = 4
ENGINE = {
    "micro_batch_tokens": 1024,
    "pack_length": 128,
    "optimizer": {"lr": 1e-3, "lr_scheduler_type": "cosine", "lr_warmup_ratio": 0.1},
}
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
        from contextlib import nullcontext

        class Bar:
            def update(self, *args):
                """Nothing is shown."""

        return nullcontext(Bar())

    def tell_of_ending(self):
        self.lines.append("ending")


class Run:
    """One run of a folder: PPO-Lag with a critic each for a model and a constraint, and a function that only judges."""

    def __init__(self, folder, models, **changes):
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
                "help": {"role": "objective", "model": models.reward, "critic": ENGINE},
                "own": JUDGED | {"critic_model": models.reward},
                "harm": {"role": "constraint", "model": models.cost, "threshold": -0.2, "critic": ENGINE},
            },
            "multipliers": {"lambda_init": 0.5, "lambda_lr": 0.5, "episode_cost_window_size": 16, "rule": "adam_log"},
            "advantage": {"kl_target": 0.5},
            "rollout": {
                "max_prompt_tokens": 64, "max_new_tokens": 16, "chunk_size": 4, "max_num_seqs": 16, "kv_cache_mib": 64,
            },
            "learner": {"engine": ENGINE, "ptx": {"data": {"limit": 20}, "batch_size": 4}},
            "checkpoint": {"every_steps": 1},
        }  # fmt: skip
        config = Config.model_validate({"run_dir": folder, "seed": 3, "rlhf": {"run": {**section, **changes}}})
        self.plan = make_plan(config)
        self.stage, self.files = self.plan.stage("run"), self.plan.files.stage("run")
        self.screen = Screen()

    def go(self, **options):
        """Run, or go on with, the stage."""
        tracker = Tracker(WandB(mode="disabled"), self.plan.files.wandb, "run", {})
        Pipeline(self.plan, self.screen, tracker, lambda: None).run_stage(self.stage, **options)

    def numbers(self):
        """Everything it logged but the seconds."""
        return [
            {**step, "metrics": {k: v for k, v in step["metrics"].items() if not k.endswith("_s")}}
            for step in read_jsonl(self.files.steps)
        ]

    def result(self):
        """What must be equal in a run that was cut short: numbers, weights, multipliers, what it was trained on."""
        weights = {path.name: sha256_file(path) for path in self.files.policy.iterdir()}
        return self.numbers(), weights, read_json(self.files.multipliers), read_jsonl(self.files.ledger)


@pytest.fixture(scope="module")
def undisturbed(ray_session, tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Run(folder / "run", tiny_models)
        run.go()
    assert not run.files.training.folder.exists()
    entries = [Entry.from_json(values) for values in read_jsonl(run.files.ledger)]
    assert check_ledger(entries, Terms(**read_json(run.files.run_record)["ledger"])) == STEPS
    return run.result()


def test_a_judge_that_fails_and_the_same_command(undisturbed, tiny_models, tmp_path, monkeypatch):
    """The state before the failing step is kept, though no checkpoint was due; a change since then is refused."""
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "run", tiny_models, checkpoint={"every_minutes": 600})
    log = run.screen.line

    def break_the_judge_after_two_steps(text):
        log(text)
        if f"step   2/{STEPS}" in text:
            run.flag.touch()

    run.screen.line = break_the_judge_after_two_steps
    with pytest.raises(Exception, match="the judge is out of order"):
        run.go()
    assert "the same command goes on after step 2 of run" in run.screen.lines[-1]
    (checkpoint,) = Checkpoints(run.files.training).all()
    verify_folder(checkpoint.folder)
    assert checkpoint.step == 2

    with pytest.raises(CastorError, match=r"run was cut short after step 2, .*: steps 4 -> 5\. Undo that"):
        Run(tmp_path / "run", tiny_models, steps=5).go()
    run.flag.unlink()
    run.go()
    assert "run goes on after step 2 of 4" in run.screen.lines
    assert run.result() == undisturbed
    assert not run.files.training.folder.exists()
