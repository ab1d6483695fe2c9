"""A DeepSpeed engine around one model: accumulate weighted losses, step, export, save, load."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import get_scheduler

from castor.config.cluster import DETERMINISTIC
from castor.config.training import REDUCE_BUCKET, Engine, Optimizer
from castor.models.attention import place
from castor.models.device import device, resolve_dtype
from castor.models.last_layers import train_last_layers
from castor.models.lora import inner_model
from engines import deepspeed_state
from engines.float32_heads import Float32Heads
from engines.sharded_loading import loading_for, shape, whole_layers


def init_process_group(rank: int, world_size: int, local_rank: int, store: Any, timeout_s: float) -> None:
    """Join the SPMD group that meets in a torch `Store`. A collective longer than `timeout_s` raises on every rank.

    `local_rank` is the number of this process's GPU, the current one, among those it sees.
    """
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    adopt_process_group(rank, world_size, local_rank)


def load_deepspeed() -> None:
    """Import DeepSpeed, once this process has its GPU. It takes seconds, which nothing else need be blamed for."""
    import deepspeed  # noqa: F401


def adopt_process_group(rank: int, world_size: int, local_rank: int) -> None:
    """Let DeepSpeed use this process's group, and the GPU of number `local_rank`."""
    import deepspeed

    # on a CPU, DeepSpeed would compile a shared-memory op at first use that only its inference path calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(local_rank), LOCAL_WORLD_SIZE="1")
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


def loading(config: Engine) -> AbstractContextManager[None]:
    """Around the load of a model that an engine of this config will train, on every rank: see `loading_for`."""
    return loading_for(config, _deepspeed_config(config, dist.get_world_size(), REDUCE_BUCKET))


class TrainEngine:
    """Trains one model. All methods are collective: every rank calls them in the same order.

    The gradient of a step is that of the sum of all losses given to `accumulate` on all ranks: global normalisation
    belongs into the losses (castor.algorithms.ragged.token_weights), not into the engine.
    """

    def __init__(self, model: nn.Module, config: Engine, total_steps: int) -> None:
        import deepspeed

        if os.environ.get(DETERMINISTIC):  # an operation that has no such kernel raises, and names itself
            torch.use_deterministic_algorithms(True)
        self.config, self.device = config, device()
        self.world_size = dist.get_world_size()
        with whole_layers():
            model = place(model, self.device)
        if config.trained_layers is not None:
            train_last_layers(model, config.trained_layers)
        cast = _is_bfloat16(config)
        self.heads = Float32Heads(model, cast)
        _cast_what_is_whole(model, resolve_dtype(config.dtype))
        if config.gradient_checkpointing:
            _, inner = inner_model(model)
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.optimizer.weight_decay),
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            fused=True,
        )
        trained = sum(math.prod(shape(parameter)) for parameter in model.parameters() if parameter.requires_grad)
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=lambda opt: _schedule(opt, config.optimizer, total_steps),
            config=_deepspeed_config(config, self.world_size, trained),
        )
        if config.zero_stage == 0 and cast:
            deepspeed_state.undo_first_step(self.engine)
        self.heads.restore(self.engine)
        self.engine.train()  # models are loaded in evaluation mode, in which nothing is recomputed
        self._clipped_norm: float | None = None
        if config.zero_stage == 0:
            # plain fp32 training clips in this method and throws the norm away; every other mode reports it
            self.engine.clip_fp32_gradients = self._clip

    def forward(self, *inputs: Any) -> Tensor:
        """The model's forward pass through the engine, with gradients."""
        return self.engine(*inputs)

    @torch.no_grad()
    def infer(self, *inputs: Any) -> Tensor:
        """The model's forward pass in evaluation mode, without gradients."""
        self.engine.eval()
        try:
            return self.engine(*inputs)
        finally:
            self.engine.train()

    def accumulate(self, loss: Tensor) -> None:
        """Backward pass of one micro-batch's share of the mini-batch loss."""
        self.engine.backward(loss * self.world_size)  # DeepSpeed averages gradients over ranks; we want their sum

    def step(self) -> float:
        """Reduce, clip, update. Returns the gradient norm before clipping.

        Raises FloatingPointError when the gradient is not finite; weights and optimiser are then as before the step.
        """
        self.engine.step()
        self.heads.refresh(self.engine)
        reported = self.engine.get_global_grad_norm()
        norm = self._clipped_norm if self._clipped_norm is not None else float(reported)
        if not (self.engine.was_step_applied() and math.isfinite(norm)):
            raise FloatingPointError(
                f"the gradient of update {self.engine.global_steps} is not finite, and the update was left out: "
                "lower the learning rate or look for bad rows"
            )
        return norm

    def _clip(self) -> None:
        limit = self.config.optimizer.max_grad_norm
        self._clipped_norm = float(torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), limit))
        if not math.isfinite(self._clipped_norm):
            for parameter in self.engine.module.parameters():
                parameter.grad = None  # AdamW passes over parameters without a gradient

    def leave_gpu(self) -> None:
        """Move weights, gradients and the optimiser's state into the node's memory, until `return_to_gpu`.

        ZeRO-2 without offloading: in bfloat16 DeepSpeed has no such call at stage 1, and at 3 it asks for its own,
        compiled AdamW. Nothing changes but where it lies, and without a GPU not even that.
        """
        self.engine.offload_states(pin_memory=self.device.type == "cuda")

    def return_to_gpu(self) -> None:
        """Undo `leave_gpu`."""
        self.engine.reload_states()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.engine.get_lr()[0])

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter in full, one at a time, in an order that is the same on every rank (copies on the CPU)."""
        for name, tensor in self.whole_tensors(lambda name: True):
            yield name, tensor.to("cpu", copy=True)

    def whole_tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """The parameters with a wanted name, one at a time; each holds its values until the next one is asked for.

        Those of heads are float32, the others of the model's type.
        """
        import deepspeed

        exact = self.heads.tensors()
        for name, parameter in self.engine.module.named_parameters():
            if not wanted(name):
                continue
            if name in exact:
                yield name, exact[name]
                continue
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.config.zero_stage == 3):
                yield name, parameter.detach()

    def save(self, folder: Path) -> list[Path]:
        """Write this rank's part of the training state into `folder`, which exists; returns its files."""
        return deepspeed_state.read_out(self.engine).write(folder)

    def snapshot(self) -> deepspeed_state.EngineState:
        """A copy of this rank's part, to be written while training goes on: 12 bytes a parameter, over all ranks."""
        return deepspeed_state.snapshot(self.engine)

    def load(self, folder: Path) -> None:
        """Continue from what was written, on however many ranks and at whatever ZeRO stage that was."""
        deepspeed_state.load(self.engine, folder)
        self.heads.refresh(self.engine)


def _deepspeed_config(config: Engine, world_size: int, trained: int) -> dict[str, Any]:
    """The engine config, derived. Micro-batches vary in number, so the caller owns the accumulation boundary.

    ZeRO sets aside a buffer of `reduce_bucket_size` elements whatever the model: one of `trained` parameters cannot use
    more.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": _is_bfloat16(config)},
        **(_float32_gradients(config.zero_stage) if _is_bfloat16(config) else {}),
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": min(REDUCE_BUCKET, trained),
            **({"stage3_param_persistence_threshold": 0} if config.zero_stage == 3 else {}),
            **_offloaded(config),
        },
    }


def _is_bfloat16(config: Engine) -> bool:
    return resolve_dtype(config.dtype) == torch.bfloat16


def _float32_gradients(zero_stage: int) -> dict[str, Any]:
    """Micro-batches' gradients in bfloat16 are summed in float32: in bfloat16 a sum loses what is 256 times smaller.

    DeepSpeed refuses it at stage 0. Stage 1 reduces the sum over the ranks, once a step: on the wire it stays float32.
    Stages 2 and 3 reduce every micro-batch, in bfloat16, and sum what has arrived.
    """
    if zero_stage == 0:
        return {}
    wire = {"communication_data_type": "fp32"} if zero_stage == 1 else {}
    return {"data_types": {"grad_accum_dtype": "fp32"}} | wire


def _offloaded(config: Engine) -> dict[str, Any]:
    pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    wanted = {"offload_optimizer": config.offload.optimizer, "offload_param": config.offload.parameters}
    return {key: pinned for key, device in wanted.items() if device == "cpu"}


def _cast_what_is_whole(model: nn.Module, dtype: torch.dtype) -> None:
    """Of a model that was loaded in shards; DeepSpeed casts the parameters of a whole one by itself."""
    whole = [parameter for parameter in model.parameters() if not hasattr(parameter, "ds_id")]
    if len(whole) < sum(1 for _ in model.parameters()):
        for parameter in whole:
            parameter.data = parameter.data.to(dtype)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for p in model.parameters() if p.requires_grad and len(shape(p)) >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and len(shape(p)) < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # an adapter has neither biases nor norms


def _schedule(optimizer: torch.optim.Optimizer, config: Optimizer, total_steps: int) -> Any:
    name = "constant_with_warmup" if config.lr_scheduler_type == "constant" else config.lr_scheduler_type
    warmup = math.ceil(config.lr_warmup_ratio * total_steps)
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
