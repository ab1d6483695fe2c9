"""The training state of a DeepSpeed engine as whole tensors: fp32 weights, Adam's moments, the schedule.

Every trained parameter is stored in full under its own name, so a run continues at any number of ranks and any ZeRO
stage, and bit for bit where neither changed. (DeepSpeed's own checkpoints hold shards, which a conversion outside
the run has to put together first.) Parameter i is written by rank i modulo their number: no rank holds, or writes,
more than its share, and all write at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from castor.io.errors import CastorError
from castor.io.files import read_json, write_json
from engines.sharded_loading import shape

STATE_FILE = "engine.json"
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
FILE_BYTES = 1 << 30  # a rank writes its share in files of about this size, so that it never holds more


@dataclass(frozen=True)
class EngineState:
    """One rank's part of an engine's state, apart from the engine: training may go on while it is written."""

    rank: int
    tensors: Iterable[tuple[str, Tensor]]  # on the CPU
    buffers: dict[str, Tensor] | None  # of rank 0
    progress: dict[str, Any] | None  # of rank 0

    def write(self, folder: Path) -> list[Path]:
        """Write it into `folder`, which exists; returns the files."""
        written: list[Path] = []

        def save(name: str, tensors: dict[str, Tensor]) -> None:
            save_file(tensors, folder / name)
            written.append(folder / name)

        part: dict[str, Tensor] = {}
        for name, tensor in self.tensors:
            part[name] = tensor
            if sum(each.nbytes for each in part.values()) > FILE_BYTES:
                save(f"rank-{self.rank}-{len(written)}.safetensors", part)
                part = {}
        if part:
            save(f"rank-{self.rank}-{len(written)}.safetensors", part)
        if self.buffers is not None and self.progress is not None:
            save("buffers.safetensors", self.buffers)
            write_json(folder / STATE_FILE, self.progress)
            written.append(folder / STATE_FILE)
        return written


def snapshot(engine: Any) -> EngineState:
    """A copy of this rank's part of the state, in the node's memory. Collective.

    What comes from a GPU lies in pinned memory, which torch keeps for the next snapshot: the copies are then as fast as
    the bus, and none waits for another.
    """
    state = read_out(engine, pinned=True)
    copied = replace(state, tensors=list(state.tensors))
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copied


def read_out(engine: Any, pinned: bool = False) -> EngineState:
    """The same without the copy: its tensors are made while it is written, one at a time, on all ranks together.

    With `pinned`, a tensor from a GPU has its values once the current stream has come so far.
    """
    rank, steps = dist.get_rank(), _optimizer_steps(engine)
    if steps:
        _link_moments(engine)
    tensors = _share(engine, (WEIGHT, *MOMENTS) if steps else (WEIGHT,), pinned)
    if rank:
        return EngineState(rank, tensors, None, None)
    buffers = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _buffers(engine.module)}
    progress = {
        "optimizer_steps": steps,
        "global_steps": engine.global_steps,
        "skipped_steps": engine.skipped_steps,
        "last_epoch": engine.lr_scheduler.last_epoch,
        "learning_rates": engine.lr_scheduler.get_last_lr(),
    }
    return EngineState(rank, tensors, buffers, progress)


def _share(engine: Any, keys: Sequence[str], pinned: bool) -> Iterator[tuple[str, Tensor]]:
    """This rank's tensors, float32 copies on the CPU."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for index, (name, parameter) in enumerate(_trained(engine)):
        for key in keys:
            tensor = _get(engine, parameter, key)
            if index % world_size == rank:
                copy = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=pinned and tensor.is_cuda)
                yield f"{name}/{key}", copy.copy_(tensor, non_blocking=pinned)


def load(engine: Any, folder: Path) -> None:
    """Put a saved state into an engine around the same model. Collective.

    Raises CastorError, before anything is changed, when it is of another model.
    """
    import deepspeed

    state, where = read_json(folder / STATE_FILE), _where(engine, folder)
    if state["optimizer_steps"]:
        _make_moments(engine, state["optimizer_steps"])
        _link_moments(engine)
    with torch.no_grad():
        for parameter, tensors in _stored(engine, where):
            for key, tensor in tensors.items():
                _set(engine, parameter, tensor, key)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                parameter.copy_(tensors[WEIGHT])
        with safe_open(folder / "buffers.safetensors", "pt") as file:
            for name, tensor in _buffers(engine.module):
                tensor.copy_(file.get_tensor(name))
    engine.global_steps, engine.skipped_steps = state["global_steps"], state["skipped_steps"]
    scheduler = engine.lr_scheduler
    scheduler.last_epoch, scheduler._last_lr = state["last_epoch"], list(state["learning_rates"])
    for group, rate in zip(scheduler.optimizer.param_groups, state["learning_rates"], strict=True):
        group["lr"] = rate


@torch.no_grad()
def get_weight(engine: Any, parameter: nn.Parameter) -> Tensor:
    """The float32 weight that the engine trains, whole, on the parameter's device. Collective; a stage may alias it."""
    return _get(engine, parameter, WEIGHT)


@torch.no_grad()
def set_weight(engine: Any, parameter: nn.Parameter, weight: Tensor) -> None:
    """Put a whole float32 weight in place of the one that the engine trains; the parameter stays. Collective."""
    _set(engine, parameter, weight, WEIGHT)


@torch.no_grad()
def undo_first_step(engine: Any) -> None:
    """ZeRO-0 in bfloat16: take back the step on gradients of zero with which DeepSpeed makes AdamW's state.

    It counts as the first one for Adam's bias correction, and decays the weights.
    """
    engine.basic_optimizer.state.clear()
    engine.optimizer.refresh_fp32_params()


def _trained(engine: Any) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that belong to a model's state, the same on every rank."""
    kept = module.state_dict().keys()
    return [(name, tensor) for name, tensor in module.named_buffers() if name in kept]


def _where(engine: Any, folder: Path) -> dict[str, Path]:
    """The file of every stored tensor. Raises CastorError unless they are those of the engine's model."""
    where, shapes = dict[str, Path](), dict[str, tuple[int, ...]]()
    for path in sorted(folder.glob("rank-*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  # it is no mapping
                where[key], shapes[key] = path, tuple(file.get_slice(key).get_shape())
    stored = {key.removesuffix(f"/{WEIGHT}"): shapes[key] for key in shapes if key.endswith(f"/{WEIGHT}")}
    wanted = {name: shape(parameter) for name, parameter in _trained(engine)}
    for name in (*wanted, *stored):
        if stored.get(name) != wanted.get(name):
            raise CastorError(
                f"{folder} is of another model: {name} is {_shown(stored.get(name))} there and "
                f"{_shown(wanted.get(name))} in the model that is trained"
            )
    return where


def _shown(size: tuple[int, ...] | None) -> str:
    return "missing" if size is None else "x".join(map(str, size)) or "a single number"


def _stored(engine: Any, where: Mapping[str, Path]) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
    """Every trained parameter with its stored tensors, one parameter at a time."""
    for name, parameter in _trained(engine):
        keys = [key for key in (WEIGHT, *MOMENTS) if f"{name}/{key}" in where]
        with safe_open(where[f"{name}/{WEIGHT}"], "pt") as file:
            yield parameter, {key: file.get_tensor(f"{name}/{key}") for key in keys}


def _get(engine: Any, parameter: nn.Parameter, key: str) -> Tensor:
    """The whole fp32 weight, or one of its moments. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not _is_sharded(parameter):
        master = _masters(engine)[parameter]
        return master.detach() if key == WEIGHT else engine.basic_optimizer.state[master][key]
    tensor = safe_get_full_fp32_param(parameter) if key == WEIGHT else safe_get_full_optimizer_state(parameter, key)
    assert tensor is not None
    return tensor


def _set(engine: Any, parameter: nn.Parameter, tensor: Tensor, key: str) -> None:
    """Put the whole fp32 weight, or one of its moments, in place; every rank takes its share."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if not _is_sharded(parameter):
        master = _masters(engine)[parameter]
        (master if key == WEIGHT else engine.basic_optimizer.state[master][key]).copy_(tensor)
    elif hasattr(parameter, "ds_id"):
        _set_zero3(parameter, tensor, key)
    elif key == WEIGHT:
        safe_set_full_fp32_param(parameter, tensor)
    else:
        safe_set_full_optimizer_state(parameter, tensor, key)


def _set_zero3(parameter: Any, tensor: Tensor, key: str) -> None:
    """ZeRO-3 pads to equal shares, which `safe_set_full_*` forgets: it fails where the ranks do not divide a tensor."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()
    whole = pad(tensor.flatten(), (0, size * dist.get_world_size() - tensor.numel()))
    share = whole.narrow(0, size * dist.get_rank(), size)
    if key == WEIGHT:
        safe_set_local_fp32_param(parameter, share)
    else:
        safe_set_local_optimizer_state(parameter, share, key)


def _is_sharded(parameter: nn.Parameter) -> bool:
    """ZeRO 1 to 3 tell on the parameter itself where its pieces are."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _masters(engine: Any) -> dict[nn.Parameter, Tensor]:
    """ZeRO-0: what the optimiser updates, by parameter; in bfloat16 an fp32 copy, in float32 the parameter itself."""
    wrapper = engine.optimizer
    if not hasattr(wrapper, "fp32_groups"):
        return {parameter: parameter for _, parameter in _trained(engine)}
    pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
    return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}


def _optimized(engine: Any) -> list[Tensor]:
    """The tensors this rank's AdamW works on: parameters, or flat pieces of several."""
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):  # ZeRO-3 hands them to AdamW one at a time
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [tensor for group in engine.basic_optimizer.param_groups for tensor in group["params"]]


def _optimizer_steps(engine: Any) -> int:
    """Updates that were applied. Before the first one AdamW has no moments."""
    states = [engine.basic_optimizer.state.get(tensor) for tensor in _optimized(engine)]
    return int(next((state["step"] for state in states if state), 0))


def _make_moments(engine: Any, steps: int) -> None:
    """The state AdamW would have made in its first step, with zeros for moments."""
    for tensor in _optimized(engine):
        count = torch.tensor(float(steps), dtype=torch.float32, device=tensor.device)
        moments = {key: torch.zeros_like(tensor, memory_format=torch.preserve_format) for key in MOMENTS}
        engine.basic_optimizer.state[tensor] = {"step": count, **moments}


def _link_moments(engine: Any) -> None:
    """ZeRO 1 and 2: tell every parameter where its moments are.

    DeepSpeed does so within the first step, when only the first of the optimiser's groups has moments.
    """
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        engine.optimizer._hp_optimizer_states_linked = False
        link()
