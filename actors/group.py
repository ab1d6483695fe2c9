"""Groups of actors: start them, call them, and wait with a bound that names what failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.startup import IMPORTS, Starting, during, phase
from castor.config.training import Resources
from castor.io.errors import CastorError, Unreachable

if TYPE_CHECKING:
    from actors.reservation import Reservation
    from castor.run.actors import Actors

START_TIMEOUT_S = 900.0  # importing torch, vllm and deepspeed takes minutes on a loaded machine


# glibc would return the memory of every larger tensor to the system and fault it in again for the next one
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the highest it takes
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


class ActorFailure(RuntimeError):
    """An actor died or did not answer in time."""


class Stalled(ActorFailure):
    """An actor did not answer in time. It may be there still, and stuck."""


def actor_env(resources: Resources) -> dict[str, str]:
    """Environment of an actor's process, set before it imports anything."""
    env = {"OMP_NUM_THREADS": str(resources.threads), "TOKENIZERS_PARALLELISM": "false"}
    if resources.gpus == 0:
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"} | KEEP_MEMORY
    return env


def actor_options(resources: Resources, name: str, **env: str) -> dict[str, Any]:
    """Arguments of `.options()`: what to reserve, the environment, and a name for the dashboard and the logs."""
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "resources": dict(resources.custom),
        "runtime_env": {"env_vars": actor_env(resources) | env},
        "max_restarts": 0,
        "name": f"{name}-{time.time_ns():x}",
    }


def get(refs: Any, timeout_s: float, what: str) -> Any:
    """`ray.get` with a bound.

    Raises ActorFailure naming `what` when it dies or does not answer in time; a CastorError of the actor as itself.
    """
    try:
        return ray.get(refs, timeout=timeout_s)
    except GetTimeoutError:
        raise too_late(timeout_s, what) from None
    except RayActorError as error:
        raise ActorFailure(f"{what} died: {error}") from error
    except RayTaskError as error:
        if (cause := _castor_error(error)) is not None:
            kind = Unreachable if isinstance(cause, Unreachable) else CastorError
            raise kind(str(cause)) from error
        raise


def _castor_error(error: BaseException | None) -> CastorError | None:
    """The CastorError under the wrapping that every remote call adds; None: there is none."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error if isinstance(error, CastorError) else None


def has_died(ref: Any) -> bool:
    """Whether a call that has come back, of an actor, has failed because the actor has died."""
    try:
        ray.get(ref, timeout=START_TIMEOUT_S)
    except RayActorError:
        return True
    except RayTaskError:
        pass
    return False


def too_late(timeout_s: float, what: str) -> Stalled:
    """The failure of an actor that does not answer."""
    return Stalled(
        f"{what} did not answer within {timeout_s:.0f} s: see the run's logs; raise its timeout_s if it is only slow"
    )


def node_id() -> str:
    """The node this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


class SpmdActor(Starting):
    """Base of an actor that is one rank of an SPMD group."""

    def prepare(self) -> None:
        """Import, as all groups do side by side."""
        with phase(IMPORTS):
            import engines.deepspeed_engine  # noqa: F401

    def node(self) -> str:
        """The node this rank runs on."""
        return node_id()

    @during("process group")
    def open_store(self) -> tuple[str, int]:
        """On rank 0: open the store where the ranks meet, on a port that is free; returns its address and port."""
        import torch.distributed as dist

        address = ray.util.get_node_ip_address()
        self.store: Any = cast(Any, dist).TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return address, self.store.port

    @during("process group")
    def join(self, rank: int, world_size: int, address: str, port: int, timeout_s: float) -> None:
        """Enter the process group."""
        import torch.distributed as dist

        from actors.device import take_device
        from engines.deepspeed_engine import init_process_group, load_deepspeed

        gpu = take_device()
        with phase(IMPORTS):
            load_deepspeed()
        store = cast(Any, dist).TCPStore(address, port, is_master=False) if rank else self.store
        init_process_group(rank, world_size, gpu, store, timeout_s)
        self.rank, self.world_size = rank, world_size


class ActorGroup:
    """The actors of one role."""

    def __init__(self, name: str, handles: Sequence[ActorHandle], asked: float | None = None) -> None:
        """`asked`: when they were asked for, seconds since the epoch; default: now."""
        self.name = name
        self.handles: list[Any] = list(handles)
        self.asked = time.time() if asked is None else asked
        self.placed = self.call("__ray_ready__")  # refs, each there when its actor has a process

    @classmethod
    def start(
        cls, actors: Actors, actor_class: Any, reservation: Reservation, *args: Any, name: str | None = None
    ) -> ActorGroup:
        """Start all `actors` where they are reserved, with `args`, and have them `prepare`, without waiting for them;
        `name` for messages.
        """
        options = [reservation.options(actors, rank) for rank in range(actors.count)]
        started = cls(name or actors.name, [actor_class.options(**option).remote(*args) for option in options])
        started.call("prepare")
        return started

    def join(self, timeout_s: float) -> None:
        """`join_each` of this group alone."""
        join_each([self], timeout_s)

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call `method` on every actor; returns one ref per actor, in rank order."""
        return [getattr(handle, method).remote(*args, **kwargs) for handle in self.handles]

    def stop(self) -> None:
        """Kill every actor of the group."""
        for handle in self.handles:
            ray.kill(handle)


def join_each(groups: Sequence[ActorGroup], timeout_s: float) -> None:
    """Form a process group of the actors of each group, which are `SpmdActor`s; all groups side by side.

    `timeout_s` is how long a call may take. Collectives get twice that: it is the caller who is to miss a rank first,
    and not the other ranks.
    """
    opening = [group.handles[0].open_store.remote() for group in groups]
    joining = []
    for group, store in zip(groups, opening, strict=True):
        address, port = get(store, START_TIMEOUT_S, f"{group.name} rank 0")
        size, limit = len(group.handles), 2 * timeout_s
        joining.append([h.join.remote(rank, size, address, port, limit) for rank, h in enumerate(group.handles)])
    for group, joins in zip(groups, joining, strict=True):
        get(joins, START_TIMEOUT_S, f"{group.name} (forming its process group)")
