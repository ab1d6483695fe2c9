"""The supervised stages (SFT, reward, cost, moderation) on Ray Train with DeepSpeed: the driver's side."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.group import actor_env, node_id
from actors.progress import Progress, ProgressBoard
from actors.startup import Beginning, Start
from castor.config.supervised import Supervised, Workers
from castor.data.inspect.leaks import digest
from castor.io.ending import Ended, asked_to_end, keeping_state
from castor.io.errors import CastorError
from castor.io.files import read_json
from castor.io.terminal import Terminal
from castor.model_reference import ModelLike, ModelReference
from castor.run.actors import train_workers
from castor.run.bundles import Bundle
from castor.run.claim import Claim
from castor.run.files import StageFiles
from castor.run.profile import Profile
from trainers.supervised.train_loop import Job, Rows, train_worker

POLL_S = 0.25
BOARD_TIMEOUT_S = 60


def run_supervised(
    stage: Supervised,
    *,
    model: ModelLike,
    rows: AbstractContextManager[Sequence[Any]],
    files: StageFiles,
    template: str,
    seed: int,
    claim: Claim,
    on_progress: Callable[[Progress], None],
    terminal: Terminal | None = None,
    bundles: Sequence[Bundle] = (),
    reference: ModelLike | None = None,
    beginning: Beginning | None = None,
    profile: Profile | None = None,
) -> dict[str, float]:
    """Train one supervised stage and save its model in its folder; returns its metrics.

    `rows` are entered, which may take as long as reading them does, while the workers start. They are read one at a
    time and never copied: a `Mixture` of stores is handed to the workers as the paths of its files and the chosen
    indices. They are split by prompt, so that validation prompts never occur in training. `bundles` say how the workers
    lie on GPUs. What their start takes is noted in `beginning`, and what they do in `profile`.

    A lost worker restarts the workers from the newest checkpoint, `stage.max_failures` times. Where an earlier call
    with the same inputs was cut short, this one goes on from its checkpoint, unless the `claim` is to start over. Asked
    to end, the workers write one after the step they are at.

    Raises CastorError for what a worker found wrong with the data or the model, and for a checkpoint of other inputs;
    Ended when it was asked to end.
    """
    claim.make(files.training)
    screen = terminal or Terminal()
    if steps := files.training.steps():
        screen.line(f"{claim.stage} goes on after step {steps[-1]}")
    beginning, asked = beginning or Beginning(), time.time()
    board = cast(Any, ProgressBoard).remote()
    start = ModelReference.of(model)
    frozen = None if reference is None else ModelReference.of(reference)
    job = Job(stage, start, frozen, files, template, seed, board, profile)
    here = NodeAffinitySchedulingStrategy(node_id(), soft=False)
    running = fit.options(scheduling_strategy=here).remote(job, bundles)
    try:
        with rows as read:
            ray.get(board.deal.remote(_dealt(stage, read, seed)), timeout=BOARD_TIMEOUT_S)
            beginning.lap("data")
            with keeping_state(screen.tell_of_ending):
                over = _follow(running, board, on_progress, lambda starts: _ready(beginning, asked, starts))
    except BaseException:
        ray.cancel(running, force=True)  # the workers end with it
        raise
    if not over:
        try:
            ray.get(running, timeout=BOARD_TIMEOUT_S)  # has ended
        except RayTaskError as error:
            raise ray.get(board.refusal.remote(), timeout=BOARD_TIMEOUT_S) or error.cause from error
        stopped = ray.get(board.stopped.remote(), timeout=BOARD_TIMEOUT_S)
        if stopped is not None:
            raise Ended(f"the same command goes on after step {stopped} of {claim.stage}")
    shutil.rmtree(files.training.folder)
    return read_json(files.metrics)


def _dealt(stage: Supervised, rows: Sequence[Any], seed: int) -> Rows:
    """What the workers wait for. Raises CastorError when nothing is left to train on."""
    training, validation = split_by_prompt(rows, stage.validation_share, seed)
    if not len(training):
        raise CastorError("no training rows are left beside the validation prompts: lower validation_share")
    return Rows([ray.put(rows)], training, validation)


def _ready(beginning: Beginning, asked: float, starts: list[Start]) -> None:
    beginning.lap("actors", max(start.ready for start in starts))
    beginning.ready("RayTrainWorker", asked, starts)


def _follow(
    running: Any, board: Any, on_progress: Callable[[Progress], None], on_ready: Callable[[list[Start]], None]
) -> bool:
    """Until the workers have ended: tell of their progress, and hand on to them that they are to end.

    Returns whether the stage is over, and only Ray Train's own actors have still to end, which they do while the next
    stage starts; False: Ray Train has ended, too, for whatever reason. Raises KeyboardInterrupt when the workers are to
    end before their first step: there is nothing to keep.
    """
    ended, over, told, begun = list[Any](), False, False, False
    while not (ended or over):
        ended, _ = ray.wait([running], timeout=POLL_S)
        starts, new, over = ray.get(board.news.remote(), timeout=BOARD_TIMEOUT_S)
        if starts:
            on_ready(starts)
        for progress in new:
            begun = True
            on_progress(progress)
        if asked_to_end() and not told:
            if not begun:
                raise KeyboardInterrupt
            ray.get(board.stop.remote(), timeout=BOARD_TIMEOUT_S)
            told = True
    return over


def split_by_prompt(rows: Sequence[Any], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of training and validation rows; a prompt (with the turns before it) is in one of them only.

    At least one prompt goes to validation, unless there is no other.
    """
    numbers: dict[bytes, int] = {}  # of prompts, in the order in which they are first met
    keys = (digest(*row.key) for row in rows)  # the prompts of a large set would not fit in memory
    prompt_of = np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), dtype=np.int64)
    held_out = np.zeros(len(numbers), dtype=bool)
    if len(numbers) > 1:
        chosen = np.random.default_rng(seed).permutation(len(numbers))[: math.ceil(share * len(numbers))]
        held_out[chosen] = True
    return np.flatnonzero(~held_out[prompt_of]), np.flatnonzero(held_out[prompt_of])


@ray.remote(num_cpus=0, max_retries=0)
def fit(job: Job, bundles: Sequence[Bundle]) -> None:
    """Ray Train's `fit`, which blocks and installs its own handler of Ctrl-C, in a process of its own.

    A thread of the driver could meet a Ray that an interrupt is shutting down, and Ray then ends the whole process.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_S))  # after which an end or a loss is noticed
    _trainer(job, bundles).fit()


def _trainer(job: Job, bundles: Sequence[Bundle]) -> Any:
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    stage, resources = job.stage, job.stage.resources
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo", timeout_s=math.ceil(stage.timeout_s)),
        scaling_config=scaling(stage, bundles),
        run_config=cast(Any, RunConfig)(  # the annotations are those of Ray Train v1; v2 is what runs
            name=job.files.folder.name,
            storage_path=str(job.files.ray_train),
            failure_config=FailureConfig(max_failures=stage.max_failures),
            callbacks=[_end_noted(job.board)],
            worker_runtime_env={"env_vars": actor_env(resources)},
        ),
    )


def _end_noted(board: Any) -> Any:
    """A callback of Ray Train's, which then takes another second to end itself."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class EndNoted(WorkerGroupCallback):
        def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
            board.note_end.remote()

    return EndNoted()


def scaling(stage: Supervised, bundles: Sequence[Bundle] = ()) -> Any:
    """Ray Train's ScalingConfig: how many workers, what each of them reserves, and whether they are of one node."""
    from ray.train import ScalingConfig

    asked, workers = train_workers(stage, score=False), stage.workers  # a head changes nothing here
    resources = asked.resources
    assert resources is not None
    count: dict[str, Any] = {"num_workers": asked.count}
    if isinstance(workers, Workers):
        count = {"num_workers": (workers.min, asked.count), "elastic_resize_monitor_interval_s": workers.resize_s}
    return cast(Any, ScalingConfig)(  # annotated as the one of Ray Train v1
        **count,
        placement_strategy="STRICT_PACK" if len(bundles) == 1 else "PACK",
        use_gpu=resources.gpus > 0,
        resources_per_worker={
            "CPU": resources.cpus,
            **({"GPU": resources.gpus} if resources.gpus else {}),
            **resources.custom,
        },
    )
