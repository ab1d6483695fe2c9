"""What one rank holds under DeepSpeed's ZeRO, counted from its sources (0.19.8, deepspeed/runtime).

With P trained parameters over N ranks, s bytes a weight and a bytes an accumulated gradient (both s unless gradients
are added up in float32), a rank holds between two micro-batches, in bytes a parameter:

    stage                       weights  gradients  copy in float32  two moments
    0  fp16/unfused_optimizer   s        s          4 in bfloat16    8
    1  zero/stage_1_and_2       s        s          4/N              8/N
    1  bf16_optimizer (a = 4)   s        a          4/N              8/N
    2  zero/stage_1_and_2       s        a/N        4/N              8/N
    3  zero/stage3              s/N      a/N        4/N              8/N

DeepSpeed's own `estimate_zero2_model_states_mem_needs` says 2 + 18/N for bfloat16: these figures and the gradients once
more in float32 (4/N), which exist while the optimiser works. Its estimate for stage 3, 18/N and the largest layer, has
gradients in float32 alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from castor.config.training import REDUCE_BUCKET, Offload

MOMENTS, FLOAT32, FLOAT64 = 8, 4, 8  # bytes a parameter: AdamW's two float32 moments; one number
# elements; DeepSpeed's defaults, which Castor keeps
SUB_GROUP = 1_000_000_000  # ZeRO-3 updates parameters in groups of this many
LIVE_PARAMETERS = 1_000_000_000  # ... and keeps at most this many gathered
PREFETCH = 50_000_000  # ... and gathers this many ahead
NORM_CHUNK = 250_000_000  # ... and takes norms of offloaded gradients in pieces of this many


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of a model in training."""

    trained: int
    frozen: int  # those beside an adapter, or below the layers that are trained
    largest: int  # of the largest trained tensor
    widest: int  # of the largest tensor of all


@dataclass(frozen=True)
class ZeRO:
    """Bytes of one rank. All but the `host` ones lie where the model computes."""

    weights: float
    gradients: float
    optimizer: float
    backward: float  # in a backward pass, beside activations: reduce buckets, whole gradients, gathered weights
    update: float  # while the optimiser works: gradients once more, and norms
    host: float  # offloaded: in the node's memory

    @property
    def states(self) -> float:
        """What stays from step to step."""
        return self.weights + self.gradients + self.optimizer


def zero(sizes: Sizes, stage: int, ranks: int, weight: int, offload: Offload, accumulated: int | None = None) -> ZeRO:
    """What a rank holds at ZeRO `stage` of `ranks`.

    Args:
        sizes: of the model.
        stage: 0 to 3.
        ranks: world size; sharding is even but for padding.
        weight: bytes a weight, 2 or 4.
        offload: what is kept in the node's memory.
        accumulated: bytes a gradient that is added up over micro-batches; default: as a weight. DeepSpeed has float32
            beside bfloat16 weights at stages 1 (another optimiser), 2 and 3.

    """
    kept = weight if accumulated is None else accumulated
    share = 1 / ranks if stage else 1.0
    trained = sizes.trained * share  # those whose optimiser states this rank has
    away = offload.optimizer == "cpu"
    copied = weight == 2 or stage > 0  # (stage 3 means to spare float32 the copy, and compares a device with its name)
    weights = (sizes.trained + sizes.frozen) * weight * (share if stage == 3 else 1)
    optimizer = trained * (MOMENTS + (FLOAT32 if copied else 0))
    gradients = (trained if stage >= 2 else sizes.trained) * kept
    host = 0.0
    if away:
        host, optimizer = optimizer + trained * FLOAT32, 0.0  # AdamW's gradients stay on the host from step to step
        # ... beside those that come in (stages 2 and 3), and weights on their way back (stages 1 and 2)
        coming = kept if stage == 3 else weight * (stage if kept == weight else 1)
        host += trained * coming + (sizes.largest * weight if stage < 3 else 0)
        gradients = gradients if stage == 1 else 0.0
    if offload.parameters == "cpu":
        host, weights = host + weights, 0.0
    buckets, live = _buckets(sizes, stage, weight, kept), 0.0
    if away and stage < 3:
        buckets += sizes.largest * weight  # a buffer for the tensor on its way to the host, where it has another
    if stage == 3:
        whole = max(LIVE_PARAMETERS, sizes.widest) + PREFETCH
        live = min(sizes.trained + sizes.frozen, whole) * weight
    if stage == 2 and kept == weight and not away:
        buckets += trained * weight  # a second micro-batch's gradients beside the sum of those before
    return ZeRO(weights, gradients, optimizer, buckets + live, _update(sizes, stage, ranks, weight, kept, away), host)


def _buckets(sizes: Sizes, stage: int, weight: int, kept: int) -> float:
    """The reduce bucket, the flattened copy that is sent, and the gradient of the largest tensor on its way there."""
    bucket = min(REDUCE_BUCKET, sizes.trained)
    if stage == 0:
        return bucket * weight  # at the end of the last backward pass
    if stage == 1:
        # the bucket is made in the first backward pass; bf16_optimizer adds whole gradients to others of its own
        return bucket * weight if kept == weight else max(sizes.trained * weight, bucket * kept)
    if stage == 2:
        return (bucket + max(bucket, sizes.largest) + sizes.largest) * weight
    return (bucket + max(bucket, sizes.largest)) * weight  # the former is never given back


def _update(sizes: Sizes, stage: int, ranks: int, weight: int, kept: int, away: bool) -> float:
    trained = sizes.trained / ranks if stage else sizes.trained
    if stage == 0:
        return trained * FLOAT32 if weight == 2 else 0.0
    bucket = min(REDUCE_BUCKET, sizes.trained) * weight if stage == 3 else 0.0
    largest = sizes.largest / ranks if stage == 3 else min(sizes.largest, trained)
    if away:  # one tensor at a time passes through on its way to the host
        norm = min(largest, NORM_CHUNK) if stage == 3 else largest
        return bucket + largest * (kept + FLOAT32) + norm * FLOAT64
    group = min(trained, SUB_GROUP + largest) if stage == 3 else trained
    flattened: float = FLOAT32 if kept == FLOAT32 else kept + FLOAT32
    if stage == 2 and kept != weight:
        flattened = 0  # they are added up in the very buffer that AdamW reads
    if stage == 1:  # the bucket and this rank's gradients are filled from whole ones, which then make room
        reduced = (min(REDUCE_BUCKET, sizes.trained) + trained) * weight
        flattened = max(0.0, flattened + kept - kept * ranks)
        return max(group * flattened, reduced, largest * FLOAT64) if kept == weight else largest * FLOAT64
    return bucket + max(group * flattened, largest * FLOAT64)
