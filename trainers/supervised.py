"""The supervised stages (SFT, reward, cost) on Ray Train with DeepSpeed."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from actors.group import actor_env
from actors.progress import Progress, ProgressBoard
from castor.config.supervised import Supervised
from castor.data.batches import batches
from castor.errors import CastorError
from castor.files import read_json, write_json

POLL_S = 0.5


@dataclass(frozen=True)
class Job:
    """All a worker of the stage needs; `rows` is a list holding a ref to the rows, training rows first."""

    stage: Supervised
    model: str
    rows: list[Any]
    training_rows: int
    out: Path
    template: str
    seed: int
    board: ActorHandle


def run_supervised(
    stage: Supervised,
    *,
    model: str,
    rows: Sequence[Any],
    out: Path,
    template: str,
    seed: int,
    on_progress: Callable[[Progress], None],
) -> dict[str, float]:
    """Train one supervised stage and save its model in `out`; returns its metrics.

    Rows are split by prompt, so that validation prompts never occur in training. Raises CastorError for what the
    worker found wrong with the data or the model; another failure is retried `stage.max_failures` times.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training, validation = split_by_prompt(rows, stage.validation_share, seed)
    if not training:
        raise CastorError("no training rows are left beside the validation prompts: lower validation_share")
    board = cast(Any, ProgressBoard).remote()
    job = Job(
        stage, model, [ray.put([*training, *validation])], len(training), out.absolute(), template, seed, board
    )  # fmt: skip
    resources = stage.resources
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo", timeout_s=math.ceil(stage.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=stage.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={
                "CPU": resources.cpus,
                **({"GPU": resources.gpus} if resources.gpus else {}),
                **resources.custom,
            },
        ),
        run_config=cast(Any, RunConfig)(  # the annotations are those of Ray Train v1; v2 is what runs
            name=out.name,
            storage_path=str(out.parent.absolute() / "ray_train"),
            failure_config=FailureConfig(max_failures=stage.max_failures),
            worker_runtime_env={"env_vars": actor_env(resources)},
        ),
    )
    fit = _InBackground(trainer.fit)
    while not fit.done.wait(POLL_S):
        on_progress(ray.get(board.read.remote(), timeout=60))
    if fit.error is not None:
        raise _castor_error(fit.error) or fit.error
    return read_json(metrics_file(out))


class _InBackground(threading.Thread):
    """Runs a function in a daemon thread: `fit` in the main thread would replace the handler of Ctrl-C for good."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.function, self.done = function, threading.Event()
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Call the function; keep what it raised."""
        try:
            self.function()
        except Exception as error:  # raised again by the main thread
            self.error = error
        finally:
            self.done.set()


def metrics_file(out: Path) -> Path:
    """Where the metrics of the stage that wrote `out` are kept."""
    return out.with_name(f"{out.name}.metrics.json")


def split_by_prompt(rows: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Training and validation rows; a prompt is in one of them only. At least one prompt goes to validation."""
    prompts = sorted({row.prompt for row in rows})
    count = math.ceil(share * len(prompts)) if len(prompts) > 1 else 0
    held_out = set(np.random.default_rng(seed).permutation(np.array(prompts, dtype=object))[:count])
    training = [row for row in rows if row.prompt not in held_out]
    return training, [row for row in rows if row.prompt in held_out]


def train_worker(config: dict[str, Job]) -> None:
    """One rank of a supervised stage. Ray Train has set up the process group."""
    job = config["job"]
    torch.set_num_threads(job.stage.resources.threads)
    from actors.deepspeed_engine import TrainEngine, resolve_dtype
    from castor.data.samples import Samples
    from castor.data.template import PromptTemplate, load_tokenizer
    from trainers.tasks import make_task

    context, stage = ray.train.get_context(), job.stage
    rank, world_size = context.get_world_rank(), context.get_world_size()
    _adopt_process_group(rank, world_size)
    torch.manual_seed(job.seed)
    task = make_task(stage, ray.get(job.rows[0], timeout=600), job.model)
    template = PromptTemplate(load_tokenizer(job.model, stage.trust_remote_code), job.template)
    samples = Samples(template, task.texts(), stage.max_length)
    kept = np.array(samples.kept)
    training, validation = np.flatnonzero(kept < job.training_rows), np.flatnonzero(kept >= job.training_rows)
    if len(training) < stage.batch_size:
        raise CastorError(
            f"{len(training)} training samples ({samples.too_long} longer than max_length {stage.max_length} tokens "
            f"were left out) are fewer than one batch of {stage.batch_size}: lower batch_size or give more rows"
        )
    if len(validation) < 2:
        raise CastorError(
            f"{len(validation)} validation samples are left (of {len(samples)} samples, {samples.too_long} too long "
            "ones left out): the stage could not be measured; raise validation_share or give rows of more prompts"
        )
    steps = stage.max_steps or max(1, math.ceil(stage.epochs * (len(training) // stage.batch_size)))
    model = task.load(job.model, resolve_dtype(stage.engine.dtype))
    engine = TrainEngine(model, stage.engine, steps)
    trainer = _Trainer(job, task, samples, engine, rank, world_size)
    stream = batches(len(training), stage.batch_size, job.seed)
    for step in range(1, steps + 1):
        loss, norm = trainer.update(training[next(stream)])
        if rank == 0:
            job.board.post.remote(Progress(step, steps, {"loss": loss, "grad_norm": norm}))
    outputs = trainer.observe(validation)
    metrics = {**task.measure(outputs, kept[validation].tolist()), "training_loss": loss, "steps": steps}
    weights = {name: tensor for name, tensor in engine.named_tensors() if rank == 0}
    if rank == 0:
        metrics |= {"training_samples": len(training), "validation_samples": len(validation)}
        metrics |= {"too_long": samples.too_long}
        task.save(job.out, model, weights, outputs)
        write_json(metrics_file(job.out), metrics)
    ray.train.report(metrics)


class _Trainer:
    """One rank's micro-batches."""

    def __init__(self, job: Job, task: Any, samples: Any, engine: Any, rank: int, world_size: int) -> None:
        self.job, self.task, self.samples, self.engine = job, task, samples, engine
        self.rank, self.world_size = rank, world_size
        self.lengths = samples.lengths()

    def update(self, batch: NDArray[np.int64]) -> tuple[float, float]:
        """One optimiser step on the mean loss over `batch` (all ranks). Returns that loss and the gradient norm."""
        from actors.batch import sum_over_ranks

        total = self.task.weight(self.samples, batch)
        loss_sum = 0.0
        for chosen in self._micro_batches(batch):
            packed = self.samples.pack(chosen, self.job.stage.engine.pack_length).to(self.engine.device)
            loss = self.task.loss(self.engine.forward, packed, self._rows(chosen)) / total
            self.engine.accumulate(loss)
            loss_sum += float(loss.detach())
        norm = self.engine.step()
        return sum_over_ranks({"loss": loss_sum})["loss"], norm

    def observe(self, validation: NDArray[np.int64]) -> list[torch.Tensor]:
        """The task's observations of the validation samples in order, computed by every rank alike."""
        budget = self.job.stage.engine.micro_batch_tokens
        size = max(1, budget // max(1, int(self.lengths.max())))
        pieces = [validation[i : i + size] for i in range(0, len(validation), size)]
        packs = (self.samples.pack(piece, self.job.stage.engine.pack_length) for piece in pieces)
        return [self.task.observe(self.engine.infer, packed.to(self.engine.device)).cpu() for packed in packs]

    def _micro_batches(self, batch: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        from castor.packing import micro_batches, partition

        shares = partition(self.lengths[batch], self.world_size)
        plan = micro_batches(self.lengths[batch], shares, self.job.stage.engine.micro_batch_tokens)
        return [batch[np.asarray(piece, dtype=np.int64)] for piece in plan[self.rank]]

    def _rows(self, chosen: NDArray[np.int64]) -> list[int]:
        return [self.samples.kept[i] for i in chosen]


def _adopt_process_group(rank: int, world_size: int) -> None:
    """Let DeepSpeed use the process group that Ray Train has made."""
    import os

    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


def _castor_error(error: BaseException | None) -> CastorError | None:
    """The CastorError a worker raised, from underneath what Ray Train wrapped around it."""
    while error is not None:
        if isinstance(error, CastorError):
            return error
        for failure in getattr(error, "worker_failures", {}).values():
            found = _castor_error(failure)
            if found is not None:
                return found
        error = getattr(error, "cause", None) or error.__cause__
    return None
