"""Every path in a run's folder. Whoever reads or writes a file of a run asks here for its place."""

from __future__ import annotations

import os
from pathlib import Path

RUNS = "CASTOR_RUNS"  # environment: the folder that a relative run_dir is in; default: the working directory
DEFAULT_RUNS = Path("runs")  # where the configs that come with Castor put their runs
_CHECKPOINT = "step-" + 9 * "[0-9]"


def located(run_dir: Path) -> Path:
    """Where a run lies; absolute, since an actor's working directory is another."""
    return (Path(os.environ.get(RUNS, "")) / run_dir).absolute()


class RunFiles:
    """The files of a run that belong to no single stage."""

    RESERVED = frozenset(
        {"logs", "wandb", "tensorboard", "mlflow", "ray_train"}
    )  # names of folders that no stage may have

    def __init__(self, run_dir: Path) -> None:
        self._given = run_dir
        self.folder = located(run_dir)
        self.config = self.folder / "config.yaml"  # as it was resolved
        self.records = self.folder / "stages.json"
        self.lock = self.folder / ".lock"
        self.log = self.folder / "logs" / "castor.log"
        self.serve_log = self.folder / "logs" / "serve.log"
        self.audit_log = self.folder / "logs" / "audit.jsonl"  # of what a guard withheld
        self.votes = self.folder / "votes.jsonl"  # of the served page's arena, rows as PKU-SafeRLHF writes them
        self.served_versions = self.folder / "serve_versions.json"  # weights of policies that are being served
        self.leaks = self.folder / "leaks.json"  # held-out prompts that something is trained on
        self.summary = self.folder / "summary.json"
        self.report = self.folder / "report.html"
        self.wandb = self.folder / "wandb"
        self.tensorboard = self.folder / "tensorboard"
        self.mlflow = self.folder / "mlflow"

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run."""
        return any(os.path.isfile(path) for path in (self.config, self.records))  # False where it may not be looked at

    def shown(self, path: Path) -> Path:
        """A path of the run as a person would write it: from the folder as it was given."""
        return self._given / path.relative_to(self.folder)

    def stage(self, name: str) -> StageFiles:
        """Those of a stage; in a run with rounds also `round-2/reward` and the like."""
        return StageFiles(self.folder / name, self)


class StageFiles:
    """The files of one stage: what it makes, in its folder, and what it is told or works with, beside it."""

    def __init__(self, folder: Path, run: RunFiles | None = None) -> None:
        self.run = run  # None: the stage is of no run
        self.folder = folder  # of the model, where the stage makes one that is no RLHF policy
        self.metrics = self._beside("metrics.json")  # supervised stages
        self.counts = self._beside("counts.json")  # of the rows it read
        self.training = TrainingFiles(self._beside("training"))
        self.ray_train = folder.parent / "ray_train"  # Ray Train's own storage
        self.long_prompts = self._beside("long_prompts.jsonl")
        self.deadly_prompts = self._beside("deadly_prompts.jsonl")
        self.profile = self._beside("profile")  # of its last run with --profile
        # collect
        self.rows = folder / "rows.jsonl"
        self.queue = folder / "queue.jsonl"
        self.labelled = folder / "labelled.jsonl"
        self.queue_key = folder / "queue.key.json"
        # rlhf
        self.policy = folder / "policy"
        self.steps = folder / "steps.jsonl"
        self.ledger = folder / "ledger.jsonl"
        self.checkpoints = folder / "checkpoints"  # those that outlive the run
        self.run_record = folder / "run.json"
        self.multipliers = folder / "multipliers.json"

    def stored_rows(self, use: str = "") -> Path:
        """Rows on their way through the disk; `use` tells a second set of rows of the stage apart."""
        return self._beside(f"{use}.rows" if use else "rows")

    def all_stored_rows(self) -> list[Path]:
        """The folders of such rows that are there."""
        return sorted(path for path in self.folder.parent.glob(f"{self.folder.name}.*rows") if path.is_dir())

    def kept_checkpoints(self) -> list[Path]:
        """All that outlive the run, the oldest first."""
        return sorted(self.checkpoints.glob(_CHECKPOINT))

    def adapter(self, model: Path) -> Path:
        """The adapter of a model of the stage that was trained with one: where `castor.models.lora` puts it."""
        return model.with_name(f"{model.name}.adapter")

    def bad_rows(self, source: int, sources: int, use: str = "") -> Path:
        """Rows of source number `source` (of `sources`) that were dropped."""
        end = f"bad_rows.{source}.jsonl" if sources > 1 else "bad_rows.jsonl"
        return self._beside(f"{use}.{end}" if use else end)

    def responses(self, policy: str) -> Path:
        """The judged responses of a policy, of the stage evaluate."""
        return self.folder / f"{policy}.jsonl"

    def _beside(self, end: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{end}")


class TrainingFiles:
    """What a stage that trains keeps until it is finished: checkpoints, and, if supervised, tokens and best models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key.json"  # whose files these are: `castor.run.claim`
        self.newest = folder / "newest.json"  # names the checkpoint to go on from
        self.samples = folder / "samples"
        self.reference_logprobs = folder / "reference.npy"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after a step."""
        return self.folder / f"step-{step:09d}"

    def checkpoints(self) -> list[Path]:
        """All there are, the oldest first."""
        return sorted(self.folder.glob(_CHECKPOINT))

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints."""
        return [int(path.name.removeprefix("step-")) for path in self.checkpoints()]

    def best(self, step: int) -> Path:
        """The model of a step that was the best one so far."""
        return self.folder / f"best-{step:09d}"

    def bests(self) -> list[Path]:
        """All best models there are."""
        return sorted(self.folder.glob("best-*"))
