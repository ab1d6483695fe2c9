"""Parts that train: a step of the learner and of a critic under DeepSpeed, the same in plain torch, and offloading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from benchmarks.gpu_check import models
from benchmarks.gpu_check.setting import GIB, Figures, Setting, close
from castor.algorithms.losses import clipped_policy_loss, clipped_value_loss
from castor.config.training import Engine, Optimizer, Resources
from castor.dry_run.memory import trained

if TYPE_CHECKING:
    from engines.deepspeed_engine import TrainEngine

Role = Literal["policy", "critic"]
ROLES: tuple[Role, ...] = ("policy", "critic")


def torch_steps(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """Forward, backward and AdamW in bfloat16, without an engine around them."""
    for name in [models.TINY] if setting.small else ["0.1B", "1B"]:
        for role in ROLES:
            model, batch = _model(role, name, setting), random_batch(name, setting)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

            def step(
                model: nn.Module = model, batch: models.Batch = batch, optimizer: Any = optimizer, role: Role = role
            ) -> None:
                loss_of(role, model(batch.rows, batch.positions)).backward()
                optimizer.step()
                optimizer.zero_grad()

            yield f"{role} {name}", speed(setting, name, batch, step)
            del model, optimizer, step


def engine_steps(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """A step of the learner and of a critic at every ZeRO stage on one rank; peak memory against its estimate."""
    sizes = [models.TINY] if setting.small else ["0.1B", "1B"]
    for name in sizes:
        for role in ROLES:
            for stage in (0, 1, 2, 3) if name == sizes[0] else (2,):
                before = _allocated(setting)  # engines keep each other alive: those of former cases may still be there
                engine, batch = engine_of(role, name, setting, stage)
                figures = speed(setting, name, batch, partial(one_step, engine, batch, role))
                if not setting.small:
                    held = trained(models.shape(name), engine.config, 1, Resources(gpus=1), score=role == "critic")
                    figures |= {
                        "peak GiB": cast(float, figures["peak GiB"]) - before / GIB,
                        "estimated GiB": held.gpu / GIB,
                    }
                yield f"{role} {name} ZeRO-{stage}", figures
                engine.engine.destroy()
                del engine


def snapshots(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """A copy of the state that training goes on beside: how long it holds training up; the first one pins memory."""
    name = models.TINY if setting.small else "1B"
    engine, batch = engine_of("policy", name, setting)
    figures: Figures = {"s of a step": setting.once(partial(one_step, engine, batch))}
    first = setting.once(engine.snapshot)
    later = setting.seconds(engine.snapshot, times=3)
    size = sum(tensor.nbytes for _, tensor in engine.snapshot().tensors) / GIB
    yield f"policy {name} ZeRO-2", figures | {"s at first": first, "s": later, "GiB": size, "GiB/s": size / later}


def offloading(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """The states of an engine leave the card and come back; training then goes on as if they had not."""
    name = models.TINY if setting.small else "1B"
    engine, batch = engine_of("policy", name, setting)
    one_step(engine, batch)
    before, held = engine.infer(batch.rows, batch.positions), _allocated(setting)
    figures: Figures = {"s to the host at first": setting.once(engine.leave_gpu)}
    left = _allocated(setting)
    figures["s back at first"] = setting.once(engine.return_to_gpu)
    figures["largest difference"] = close(engine.infer(batch.rows, batch.positions), before, 0.0)
    one_step(engine, batch)
    figures |= {"s to the host": setting.once(engine.leave_gpu), "s back": setting.once(engine.return_to_gpu)}
    if not setting.small:
        figures |= {"GiB before": held / GIB, "GiB left": left / GIB}
    yield f"policy {name} ZeRO-2", figures


def engine_of(role: Role, name: str, setting: Setting, stage: Any = 2) -> tuple[TrainEngine, models.Batch]:
    """A random model in its engine, on this process alone, and a batch for it."""
    from engines.deepspeed_engine import TrainEngine

    _alone(setting)
    return TrainEngine(_model(role, name, setting), engine_config(setting, stage), 100), random_batch(name, setting)


def one_step(engine: TrainEngine, batch: models.Batch, role: Role = "policy") -> None:
    """Forward, backward, update."""
    engine.accumulate(loss_of(role, engine.forward(batch.rows, batch.positions)))
    engine.step()


def _allocated(setting: Setting) -> int:
    return 0 if setting.small else torch.cuda.memory_allocated(setting.device)


def _alone(setting: Setting) -> None:
    """A process group of this process alone: its own, or the one that a vLLM engine in it has made."""
    from engines.deepspeed_engine import adopt_process_group, init_process_group

    number = setting.device.index or 0
    if torch.distributed.is_initialized():
        adopt_process_group(0, 1, number)
    else:
        init_process_group(0, 1, number, cast(Any, torch.distributed).HashStore(), 60)


def _model(role: Role, name: str, setting: Setting) -> nn.Module:
    make: Callable[..., nn.Module] = models.policy if role == "policy" else models.critic
    model = make(name, torch.float32 if setting.small else torch.bfloat16, setting.device).train()
    inner: Any = model.lm if role == "policy" else model.backbone
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def random_batch(name: str, setting: Setting, seed: int = 0) -> models.Batch:
    """What a step of the check is made of."""
    sequences, length, pack = (6, 16, 48) if setting.small else (16, 512, 2048)
    return models.batch(name, sequences, length, pack, setting.device, seed)


def engine_config(setting: Setting, stage: Any) -> Engine:
    """DeepSpeed's, at that ZeRO stage."""
    return Engine(
        zero_stage=stage,
        dtype="float32" if setting.small else "bfloat16",
        gradient_checkpointing=True,
        micro_batch_tokens=64 if setting.small else 8192,
        optimizer=Optimizer(lr=1e-5),
    )


def loss_of(role: Role, output: Tensor) -> Tensor:
    """As in a step: of log-probabilities, or of values."""
    old, target = output.detach() - 0.01, torch.ones_like(output)
    if role == "policy":
        return clipped_policy_loss(output, old, target, 0.2).mean()
    return clipped_value_loss(output, old, target, 5.0).mean()


def speed(setting: Setting, name: str, batch: models.Batch, step: Callable[[], None]) -> Figures:
    """Tokens a second, the share of the card's FLOP/s, and the peak of its memory."""
    found: dict[str, float] = {}
    peak = setting.peak_bytes(lambda: found.update(seconds=setting.seconds(step)))
    figures: Figures = {"tokens/s": batch.tokens / found["seconds"]}
    if setting.peak_flops:
        flops = 6 * models.shape(name).parameters * batch.tokens  # without attention, and what is recomputed
        figures["MFU"] = flops / found["seconds"] / setting.peak_flops
    if peak is not None:
        figures["peak GiB"] = peak / GIB
    return figures
