"""Which GPU an actor computes on."""

from __future__ import annotations

import os

import ray

from castor.io.errors import CastorError, first_line


def local_rank() -> int:
    """Number, among the GPUs that this process sees, of the first one that Ray assigned to it; 0 where it has none.

    Ray shows an actor its own GPUs only, which then begin with number 0. Ray Train shows a worker those of all workers
    of its node.
    """
    assigned = _assigned()
    if not assigned:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",").index(assigned[0]) if visible else int(assigned[0])


def take_device() -> int:
    """Make the assigned GPU, where there is one, the current one; returns `local_rank`. Raises as `require_gpu`."""
    require_gpu()
    number = local_rank()
    if _assigned():
        import torch

        torch.cuda.set_device(number)
    return number


def release_cached_memory() -> None:
    """Give what torch keeps of the GPU, and does not use, back to other processes."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def require_gpu() -> None:
    """Raise CastorError when torch cannot use the assigned GPU: what asked for one must not go on on the CPU.

    Nothing is allocated on the GPU, as the first use of one would.
    """
    import torch

    assigned = _assigned()
    if assigned and not torch.cuda.is_available():
        raise CastorError(
            f"Ray assigned GPU {assigned[0]} to an actor, and torch cannot use it: {_reason()}; install the CUDA stack "
            "(make install-gpu) and a driver that is new enough for it"
        )


def _reason() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without CUDA
        return first_line(error)
    return "no GPU is visible"


def _assigned() -> list[str]:
    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]
