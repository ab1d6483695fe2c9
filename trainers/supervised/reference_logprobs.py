"""Log-probabilities of a frozen reference policy, computed once before a stage trains and kept in its folder."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from castor.algorithms.ragged import sequence_sums
from castor.config.supervised import Supervised
from castor.data.tokens.samples import PackedSamples, Samples
from castor.dealing import deal
from castor.io.errors import CastorError
from castor.io.files import atomic_write
from castor.model_reference import ModelReference
from castor.run.files import TrainingFiles

SHOWN = 20  # rows named in a message


def response_logprobs(forward: Callable[..., torch.Tensor], packed: PackedSamples) -> torch.Tensor:
    """[n] float32: log-probability of each sequence's response given what comes before it."""
    logprobs = forward(packed.rows, packed.target_positions(train_on_prompt=False))
    return sequence_sums(logprobs, packed.lengths - packed.prompt_lengths)


def reference_logprobs(
    stage: Supervised, model: ModelReference, samples: Samples, files: TrainingFiles
) -> NDArray[np.float32]:
    """[samples, per_sample] memory-mapped: of every response under `model`, from `files` or put there. Collective.

    The files belong to one set of samples and one reference (`stage_state.claim`), so what lies there is right. The
    ranks share the samples; each loads the whole model and drops it again. Raises CastorError when one is not finite.
    """
    file, rank = files.reference_logprobs, dist.get_rank()
    found = [file.is_file()]
    dist.broadcast_object_list(found, 0)
    if not found[0]:
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, _share(stage, model, samples))
        values = np.full((len(samples), samples.per_sample), np.nan, dtype=np.float32)
        for chosen, logprobs in (piece for share in shares for piece in share):
            values[chosen] = logprobs
        _check(values, samples, model)  # on every rank: they fail together
        if rank == 0:
            with atomic_write(file, "wb") as handle:
                np.save(handle, values)
        dist.barrier()
    return np.load(file, mmap_mode="r")


@torch.no_grad()
def _share(
    stage: Supervised, model: ModelReference, samples: Samples
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """This rank's pieces: sample numbers [n] and log-probabilities [n, per_sample]."""
    from castor.models.attention import place
    from castor.models.device import device, resolve_dtype
    from castor.models.policy import PolicyModel

    lengths, engine, rank = samples.lengths(), stage.engine, dist.get_rank()
    policy = place(PolicyModel.load(model, resolve_dtype(engine.dtype), engine=engine), device()).eval()
    plan = deal(lengths, dist.get_world_size(), engine.micro_batch_tokens)[rank]
    pieces = []
    for chosen in (np.asarray(piece, dtype=np.int64) for piece in plan if piece):
        logprobs = response_logprobs(policy, samples.pack(chosen, engine.pack_length, device()))
        pieces.append((chosen, logprobs.view(-1, samples.per_sample).float().cpu().numpy()))
    del policy
    gc.collect()
    torch.cuda.empty_cache()  # the model to train needs the room; does nothing without a GPU
    return pieces


def _check(values: NDArray[np.float32], samples: Samples, model: ModelReference) -> None:
    bad = samples.kept[~np.isfinite(values).all(1)]
    if len(bad):
        shown = ", ".join(map(str, bad[:SHOWN])) + (f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
        raise CastorError(
            f"the reference {model} gives the rows {shown} (counted from 0, in the order they are read) no finite "
            "log-probability: look at these rows, or choose another reference"
        )
