"""What one worker of a supervised stage does: one loop for every kind of stage."""

from __future__ import annotations

import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.actor import ActorHandle

from actors.device import take_device
from actors.progress import Progress
from actors.recording import record_here, recorded
from actors.startup import IMPORTS, Start, phase, startup
from actors.torch_trace import traced_steps
from castor.config.supervised import Supervised
from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.io.files import write_json
from castor.model_reference import ModelReference
from castor.run.files import StageFiles
from castor.run.profile import Profile
from trainers.supervised.stage_state import StageState, read_checkpoint, write_checkpoint

ROWS_TIMEOUT_S = 600.0
SHOWN = 20  # rows named in a message
ASK_EVERY_S = 0.25  # for rows, and whether to end: an answer takes milliseconds, as long as the step of a tiny model


@dataclass(frozen=True)
class Rows:
    """What a stage learns from. `rows` holds a ref to all rows; the others are indices into them."""

    rows: list[Any]
    training: NDArray[np.int64]
    validation: NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """All a worker of the stage needs but the rows, which may still be read while it starts: the board deals them."""

    stage: Supervised
    model: ModelReference
    reference: ModelReference | None  # of a DPO stage, where it is not the model
    files: StageFiles
    template: str
    seed: int
    board: ActorHandle
    profile: Profile | None = None


def train_worker(config: dict[str, Job]) -> None:
    """One rank of a supervised stage. Ray Train has set up the process group.

    A CastorError goes to the board: what only a person can put right would fail a restarted group again. One that is
    restarted when the result is there, as a rank of it has died since, has nothing to do.
    """
    job = config["job"]
    board: Any = job.board
    error, made = ray.get([board.refusal.remote(), board.made.remote()], timeout=ROWS_TIMEOUT_S)
    if error is not None:
        raise error
    if made:
        return
    try:
        train(job)
    except CastorError as error:
        ray.get(board.refuse.remote(error), timeout=ROWS_TIMEOUT_S)
        raise


def rows_of(board: Any) -> Rows:
    """What the driver deals, once it has read it. Raises RayActorError when the driver has ended before."""
    while True:
        dealt: Rows | None = ray.get(board.dealt.remote(), timeout=ROWS_TIMEOUT_S)
        if dealt is not None:
            return dealt
        time.sleep(ASK_EVERY_S)


def train(job: Job) -> None:
    """Train from the newest checkpoint, or from the beginning, to the end."""
    profile, name = job.profile, f"RayTrainWorker-{ray.train.get_context().get_world_rank()}"
    record_here(profile, name)
    with phase("model"):
        worker = Worker(job)
    worker.note_start(startup())
    traced = profile is not None and job.files.folder.name in profile.torch
    with traced_steps(profile.trace(name)) if profile and traced else nullcontext() as trace:
        whole = take_steps(worker, trace)
    if whole:
        ray.train.report(worker.finish())


def take_steps(worker: Worker, trace: Any) -> bool:
    """All steps that are left; whether they are the stage's last, and it was not asked to end. `trace`: of them."""
    from castor.data.tokens.batches import batches

    job, state = worker.job, worker.state
    stage = job.stage
    stream = batches(len(worker.training), stage.batch_size, job.seed, start=state.step)
    while state.step < worker.steps:
        state.step += 1
        worker.update(worker.training[next(stream)])
        if trace is not None:
            trace.step()
        last = state.step == worker.steps
        improved = False
        if last or (stage.eval_every and state.step % stage.eval_every == 0):
            improved = worker.validate()
            last = last or (stage.patience is not None and state.since_best >= stage.patience)
        if last:
            break
        ending, due = worker.decide(improved)
        if ending or due:
            write_checkpoint(worker.files, state, worker.engine, stage.keep_checkpoints)
            worker.checkpointed = time.monotonic()
        if ending:
            worker.note_stop()
            return False
    return True


@recorded
class Worker:
    """One rank: its share of every batch, the validations, the results. All methods are collective."""

    def __init__(self, job: Job) -> None:
        with phase(IMPORTS):
            from castor.data.tokens.samples import Samples
            from castor.data.tokens.template import PromptTemplate, load_tokenizer
            from castor.models.device import resolve_dtype
            from castor.models.lora import add_adapters
            from engines.deepspeed_engine import TrainEngine, adopt_process_group, load_deepspeed, loading
            from trainers.supervised.tasks import make_task

            gpu = take_device()
            load_deepspeed()
        self.job, stage = job, job.stage
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        torch.set_num_threads(stage.resources.threads)
        adopt_process_group(self.rank, self.world_size, gpu)
        self.files = job.files.training
        with phase("rows"):
            dealt = rows_of(job.board)
        with phase("data"):
            rows = ray.get(dealt.rows[0], timeout=ROWS_TIMEOUT_S)
            self.task = make_task(stage, rows, job.model, dealt.training, job.reference)
            if self.rank == 0 and not self.files.samples.is_dir():
                template = PromptTemplate(load_tokenizer(job.model), job.template)
                Samples(template, self.task.texts(), stage.max_length, self.files.samples)
            dist.barrier()
            self.samples = Samples.open(self.files.samples)
            self.lengths = self.samples.lengths()
            self.training, self.validation = self._kept(dealt.training), self._kept(dealt.validation)
            self._check_counts()
            self.task.prepare(self.samples, self.files)
        per_epoch = len(self.training) // stage.batch_size
        self.steps = stage.max_steps or max(1, math.ceil(stage.epochs * per_epoch))
        torch.manual_seed(job.seed)  # heads and adapters start alike on every rank
        with loading(stage.engine):
            self.model = self.task.load(resolve_dtype(stage.engine.dtype))
        if stage.lora:
            add_adapters(self.model, stage.lora)
        with phase("engine"):
            self.engine = TrainEngine(self.model, stage.engine, self.steps)
        self.state: StageState = read_checkpoint(self.files, self.engine, stage.keep_checkpoints)
        self.outputs: list[torch.Tensor] = []  # of the newest validation, on rank 0
        self.checkpointed = time.monotonic()
        self.asked = -math.inf  # when rank 0 last asked whether the stage is to end

    @property
    def current_step(self) -> int:
        """The one that is being taken, or was taken last."""
        return self.state.step

    def _kept(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples that were made from the given rows."""
        return np.flatnonzero(np.isin(self.samples.kept, rows, assume_unique=True))

    def _check_counts(self) -> None:
        stage, too_long = self.job.stage, self.samples.too_long
        if len(self.training) < stage.batch_size:
            raise CastorError(
                f"{len(self.training)} training samples ({too_long} longer than max_length {stage.max_length} tokens "
                f"were left out) are fewer than one batch of {stage.batch_size}: lower batch_size or give more rows"
            )
        if len(self.validation) < 2:
            raise CastorError(
                f"{len(self.validation)} validation samples are left (of {len(self.samples)} samples, {too_long} too "
                "long ones left out): the stage could not be measured; raise validation_share or give rows of more "
                "prompts"
            )

    def update(self, batch: NDArray[np.int64]) -> None:
        """One optimiser step on the mean loss over `batch`, or a skipped one where that is not finite."""
        from engines.batch import seed_step, sum_over_ranks

        start = time.monotonic()
        seed_step(self.job.seed, self.state.step, self.rank)
        total = self.task.weight(self.samples, batch)
        loss_sum, suspects = 0.0, list[int]()
        for chosen in self._micro_batches(batch):
            packed = self.samples.pack(chosen, self.job.stage.engine.pack_length, self.engine.device)
            loss = self.task.loss(self.engine.forward, packed, self._rows(chosen)) / total
            self.engine.accumulate(loss)
            value = float(loss.detach())
            suspects += [] if math.isfinite(value) else chosen.tolist()
            loss_sum += value
        try:
            norm = self.engine.step()
        except FloatingPointError:
            norm = math.nan
        loss_sum = sum_over_ranks({"loss": loss_sum})["loss"]
        if not math.isfinite(norm):
            self._skip(loss_sum, suspects, batch)
            return
        self.state.note_loss(loss_sum)
        if self.rank == 0:
            speed = int(self.lengths[batch].sum()) / (time.monotonic() - start)
            self._post(
                {"loss": loss_sum, "grad_norm": norm, "learning_rate": self.engine.learning_rate, "tokens_per_s": speed}
            )

    def _skip(self, loss: float, suspects: list[int], batch: NDArray[np.int64]) -> None:
        """Count an update that was left out. Raises CastorError when that was one too many."""
        rows = sorted(self._rows(np.array(self._poisoned(suspects) or batch.tolist())))
        self.state.skipped += 1
        shown = ", ".join(map(str, rows[:SHOWN])) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
        what = "gradient" if math.isfinite(loss) else "loss"
        told = f"{self.job.files.folder.name}: the {what} is not finite at step {self.state.step} for the rows {shown}"
        if self.state.skipped > self.job.stage.max_skipped:
            raise CastorError(
                f"{told} (counted from 0, in the order they are read): look at these rows, lower "
                f"engine.optimizer.lr, or raise max_skipped ({self.job.stage.max_skipped}) to leave such batches out"
            )
        if self.rank == 0:
            print(f"{told}: the batch was left out ({self.state.skipped} so far)", flush=True)

    @torch.no_grad()
    def _poisoned(self, suspects: list[int]) -> list[int]:
        """The samples whose own loss is not finite, among those of the micro-batches whose loss was not."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, suspects)
        everyones = [sample for share in found for sample in share]  # all ranks look at all of them: ZeRO-3 asks for it
        alone = []
        for sample in everyones:
            packed = self.samples.pack(np.array([sample]), 1).to(self.engine.device)
            loss = self.task.loss(self.engine.infer, packed, self._rows(np.array([sample])))
            alone += [] if math.isfinite(float(loss)) else [sample]
        return alone or everyones

    def validate(self) -> bool:
        """Measure the validation samples; returns whether the model is the best yet, which is then kept."""
        from engines.batch import sum_over_ranks

        self.outputs = self._observe()
        metrics: list[Any] = [None]
        if self.rank == 0:
            metrics = [self.task.measure(self.outputs, self._rows(self.validation))]
        dist.broadcast_object_list(metrics, 0)
        improved = self.state.note_validation(metrics[0], self.job.stage.best)
        if self.rank == 0:
            found = {name: value for name, value in self.state.entry(self.state.step).items() if name != "step"}
            if self.job.stage.best is not None:
                found |= {"best_step": self.state.best_step, "since_best": self.state.since_best}
            self._post({f"validation/{name}": value for name, value in found.items()})
        if improved:
            self._save(self.files.best(self.state.step) / "model")
            sum_over_ranks({"saved": 1.0})  # nobody goes on before it is on disk
        return improved

    def _observe(self) -> list[torch.Tensor]:
        """The task's observations of the validation samples in order: each rank makes every n-th piece of them."""
        engine = self.job.stage.engine
        size = max(1, engine.micro_batch_tokens // max(1, int(self.lengths[self.validation].max())))
        pieces = [self.validation[i : i + size] for i in range(0, len(self.validation), size)]
        pieces += [self.validation[:0]] * (-len(pieces) % self.world_size)  # all ranks run equally many forward passes
        mine = []
        for piece in pieces[self.rank :: self.world_size]:
            packed = self.samples.pack(piece, engine.pack_length, self.engine.device)
            mine.append(self.task.observe(self.engine.infer, packed).cpu())
        shares: list[Any] = [None] * self.world_size
        dist.all_gather_object(shares, mine)
        outputs = [shares[i % self.world_size][i // self.world_size] for i in range(len(pieces))]
        return [output for output, piece in zip(outputs, pieces, strict=True) if len(piece)]

    def decide(self, improved: bool) -> tuple[bool, bool]:
        """Whether the stage is to end early, and whether a checkpoint is written after this step: for all ranks what
        rank 0 hears, and what its clock says.

        A best model needs a checkpoint too, which knows that it is the best.
        """
        from engines.batch import sum_over_ranks

        stage, now = self.job.stage, time.monotonic()
        ending = late = False
        if self.rank == 0:
            if now - self.asked >= ASK_EVERY_S:
                board: Any = self.job.board
                ending, self.asked = ray.get(board.stopping.remote(), timeout=ROWS_TIMEOUT_S), now
            minutes = stage.checkpoint_minutes
            late = minutes is not None and now - self.checkpointed >= 60 * minutes
        decided = sum_over_ranks({"ending": float(ending), "late": float(late)})
        due = improved or bool(stage.checkpoint_every and self.state.step % stage.checkpoint_every == 0)
        return decided["ending"] > 0, due or decided["late"] > 0

    def note_start(self, start: Start) -> None:
        """Tell the driver what the start of all ranks took."""
        starts: list[Any] = [None] * self.world_size
        dist.all_gather_object(starts, start)
        board: Any = self.job.board
        if self.rank == 0:
            board.note_starts.remote(starts)

    def note_stop(self) -> None:
        """Tell the driver after which step the stage has ended early."""
        board: Any = self.job.board
        if self.rank == 0:
            ray.get(board.note_stop.remote(self.state.step), timeout=ROWS_TIMEOUT_S)

    def finish(self) -> dict[str, float]:
        """Put the result in place: the best model or the last one, and its metrics."""
        from castor.models.lora import adapter_folder

        state = self.state
        kept = state.best_step or state.step
        if not state.best_step:
            self._save(self.job.files.folder)
        elif self.rank == 0:
            model = self.files.best(kept) / "model"
            _copy_folder(model, self.job.files.folder)
            if self.job.stage.lora:
                _copy_folder(adapter_folder(model), adapter_folder(self.job.files.folder))
        metrics = {
            **{name: value for name, value in state.entry(kept).items() if name != "step"},
            "steps": state.step,
            "kept_step": kept,
            "skipped_batches": state.skipped,
            "training_samples": len(self.training),
            "validation_samples": len(self.validation),
            "too_long": self.samples.too_long,
        }
        if self.rank == 0:
            write_json(self.job.files.metrics, {**metrics, "history": state.history})
            board: Any = self.job.board
            ray.get(board.note_made.remote(), timeout=ROWS_TIMEOUT_S)
        return metrics

    def _save(self, folder: Path) -> None:
        """Write the model, adapters merged into it, and beside it the adapter."""
        from castor.models.lora import adapter_folder, merge, save_adapter

        weights = {name: tensor for name, tensor in self.engine.named_tensors() if self.rank == 0}
        if self.rank != 0:
            return
        if lora := self.job.stage.lora:
            save_adapter(adapter_folder(folder), self.model, weights, lora, self.job.model.name)
            weights = dict(merge(self.model, weights.items(), weights))
        self.task.save(folder, self.model, weights, self.outputs)

    def _post(self, metrics: dict[str, float]) -> None:
        board: Any = self.job.board
        board.post.remote(Progress(self.state.step, self.steps, metrics))

    def _micro_batches(self, batch: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        from castor.dealing import deal

        plan = deal(self.lengths[batch], self.world_size, self.job.stage.engine.micro_batch_tokens)
        return [batch[np.asarray(piece, dtype=np.int64)] for piece in plan[self.rank]]

    def _rows(self, chosen: NDArray[np.int64]) -> list[int]:
        return [int(row) for row in self.samples.kept[chosen]]


def _copy_folder(source: Path, target: Path) -> None:
    with atomic_folder(target) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)
