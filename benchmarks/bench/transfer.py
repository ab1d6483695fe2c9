"""Weights from a learner to engines, beside a plain copy of the same bytes: by transport, and with an adapter's.

The learner's and the engines' half of every transport work in processes of their own, on random weights in the shapes
of a Llama, with a copy into memory of its own in place of vLLM's loading. LoRA: an adapter of all linear layers but the
head is sent over a base that is there already.

Figures, in seconds, medians over the turns: all of it, then the sender's gathering and digest, the wire (host: put and
get; gloo, ipc: where the sender waits for it), and the slowest engine's loading and digest. With the latter two they
overlap.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, cast

import ray
import torch
from torch import Tensor

from actors.cluster import cluster
from actors.group import actor_options, get
from benchmarks.bench.measurement import Ratio, Section, seconds
from castor.config.cluster import RayCluster
from castor.config.training import Resources
from engines.weights import collective, digest, ipc
from engines.weights.base import WeightUpdate, receiver_of, sender_class
from engines.weights.collective import Invitation

SIZES = {  # vocabulary, width, width of the MLP, layers
    "3M": (4096, 192, 512, 3),
    "100M": (32_000, 768, 2048, 7),
}
RANK = 16
DTYPE = "bfloat16"
TIMEOUT_S = 300.0
AT_MOST = 2.0  # times a copy
DIGESTS = "the digest on each side, which takes as long as one to two copies"
BOUNDED_BY = {
    "host": f"{DIGESTS}, one after the other, and two copies, into the object store and out of it",
    "gloo": f"{DIGESTS}, a copy into the group's buffer, the broadcast over TCP, and a copy out of it",
    "ipc": f"{DIGESTS}, a copy into shared memory, and a copy out of it",
}


def shapes(size: str, lora: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what an update holds: a Llama's weights, or those of an adapter."""
    vocabulary, width, inner, layers = SIZES[size]
    if not lora:
        yield "model.embed_tokens.weight", (vocabulary, width)
    for layer in range(layers):
        attention = [(f"self_attn.{name}_proj", width, width) for name in "qkvo"]
        mlp = [("mlp.gate_proj", inner, width), ("mlp.up_proj", inner, width), ("mlp.down_proj", width, inner)]
        for name, rows, columns in attention + mlp:
            if lora:
                yield f"model.layers.{layer}.{name}.lora_A.weight", (RANK, columns)
                yield f"model.layers.{layer}.{name}.lora_B.weight", (rows, RANK)
            else:
                yield f"model.layers.{layer}.{name}.weight", (rows, columns)
        if not lora:
            yield f"model.layers.{layer}.input_layernorm.weight", (width,)
            yield f"model.layers.{layer}.post_attention_layernorm.weight", (width,)
    if not lora:
        yield "model.norm.weight", (width,)
        yield "lm_head.weight", (vocabulary, width)


class Stopwatch:
    """Seconds by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, on the watch."""

        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        return run

    def each(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        """The same items, the making of each on the watch."""
        following = self.timed(name, lambda: next(items, None))
        while (item := following()) is not None:
            yield item


class Half:
    """What both sides of a transfer share: a clean watch, and the digest that is asked for."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nothing writes to it
        self.watch = Stopwatch()
        self.plain = digest.sums
        self.groups = {group: group.finish for group in (collective.Group, ipc.Group)}
        self.get, self.put = ray.get, ray.put

    def reset(self) -> None:
        """Start the watch from nothing."""
        self.watch.seconds.clear()
        digest.sums = self.watch.timed("digest", self.plain)
        for group, finish in self.groups.items():
            group.finish = self.watch.timed("wire", finish)  # type: ignore[method-assign]
        ray.get, ray.put = self.watch.timed("wire", self.get), self.watch.timed("wire", self.put)

    def seconds(self) -> dict[str, float]:
        """What the watch shows."""
        return dict(self.watch.seconds)


@ray.remote
class Learner(Half):
    """The learner's half."""

    def load(self, size: str, dtype: str, lora: bool) -> int:
        """Make the weights; returns their bytes."""
        torch.manual_seed(0)
        kind = getattr(torch, dtype)
        self.weights = {name: torch.randn(shape).to(kind) for name, shape in shapes(size, lora)}
        self.senders: dict[str, Any] = {name: sender_class(name)(keep=True) for name in ("host", "gloo", "ipc")}
        return sum(tensor.nbytes for tensor in self.weights.values())

    def memcpy(self) -> float:
        """Seconds to copy what an update holds into memory that is there, in one thread."""
        if not hasattr(self, "copies"):
            self.copies = {name: torch.zeros_like(tensor) for name, tensor in self.weights.items()}
        return seconds(lambda: [self.copies[name].copy_(tensor) for name, tensor in self.weights.items()])

    def invite(self, transport: str, workers: int) -> Invitation:
        """Open a group."""
        invitation: Invitation = self.senders[transport].invite("127.0.0.1", workers, TIMEOUT_S)
        self.senders[transport].accept(invitation)
        return invitation

    def publish(self, transport: str) -> WeightUpdate:
        """Send the weights."""
        update = self.senders[transport].send(self.watch.each("gather", iter(self.weights.items())), 1)
        if update.lost:
            raise RuntimeError(update.lost)
        return cast(WeightUpdate, update)


@ray.remote
class Engine(Half):
    """An engine's half."""

    def load(self, size: str, dtype: str, lora: bool) -> None:
        """Make room for the weights."""
        self.weights = {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, shape in shapes(size, lora)}

    def receive(self, update: WeightUpdate) -> str:
        """Load an update; returns the digest of what was loaded."""
        found, receiver = digest.Digest(), receiver_of(update.transport)

        def load(tensors: digest.Tensors) -> None:
            for name, tensor in found.adding(tensors):
                self.copy(name, tensor)

        for piece in receiver.pieces(update, in_process=True):
            receiver.receive(piece, load)
        return found.over(None)

    def copy(self, name: str, tensor: Tensor) -> None:
        """Take one tensor over."""
        self.watch.timed("load", self.weights[name].copy_)(tensor)


def turn(learner: Any, engines: list[Any], transport: str, group: list[Any]) -> dict[str, float]:
    """One transfer: seconds by what they went into, and those of the copy before it."""
    plain = get(learner.memcpy.remote(), TIMEOUT_S, "the learner")
    get([each.reset.remote() for each in (learner, *engines)], TIMEOUT_S, "reset")
    begin = time.perf_counter()
    publishing = learner.publish.remote(transport)
    if transport == "host":
        update = get(publishing, TIMEOUT_S, "the learner")
        found = get([engine.receive.remote(update) for engine in engines], TIMEOUT_S, "an engine")
    else:
        announced = WeightUpdate(1, "", transport, group)
        found = get([engine.receive.remote(announced) for engine in engines], TIMEOUT_S, "an engine")
        update = get(publishing, TIMEOUT_S, "the learner")
    whole = time.perf_counter() - begin
    if set(found) != {update.digest}:
        raise RuntimeError("the weights did not arrive")
    sent = get(learner.seconds.remote(), TIMEOUT_S, "the learner")
    seen = get([engine.seconds.remote() for engine in engines], TIMEOUT_S, "an engine")
    slowest = {name: max(each.get(name, 0.0) for each in seen) for name in ("wire", "load", "digest")}
    return {
        "all": whole,
        "gathering": sent.get("gather", 0.0),
        "sender's digest": sent["digest"],
        "wire": sent.get("wire", 0.0) + (slowest["wire"] if transport == "host" else 0.0),
        "loading": slowest["load"],
        "engine's digest": slowest["digest"],
        "memcpy": plain,
    }


def measure_size(size: str, count: int, lora: bool, turns: int) -> tuple[list[Ratio], dict[str, float]]:
    """Every transport to `count` engines."""
    options = [actor_options(Resources(cpus=0), f"bench-{i}") for i in range(count + 1)]
    learner: Any = cast(Any, Learner).options(**options[0]).remote()
    engines = [cast(Any, Engine).options(**each).remote() for each in options[1:]]
    total = get(learner.load.remote(size, DTYPE, lora), TIMEOUT_S, "the learner")
    get([engine.load.remote(size, DTYPE, lora) for engine in engines], TIMEOUT_S, "an engine")
    label = f"{size}{' LoRA' if lora else ''}, {total >> 20} MiB, {count} engine{'s' if count > 1 else ''}"
    ratios, figures = list[Ratio](), dict[str, float]()
    for transport in ("host", "gloo", "ipc"):
        group = []
        if transport != "host":
            group = [vars(get(learner.invite.remote(transport, count), TIMEOUT_S, "the learner"))]
        rows = [turn(learner, engines, transport, group) for _ in range(turns + 1)][1:]
        values = tuple(row["all"] / row["memcpy"] for row in rows)
        name = f"{label}, {transport}"
        ratios.append(Ratio(f"{name}: transfer / memcpy", values, at_most=AT_MOST, bounded_by=BOUNDED_BY[transport]))
        figures |= {f"{name}: {part}, s": statistics.median(row[part] for row in rows) for part in rows[0]}
    for actor in (learner, *engines):
        ray.kill(actor)
    return ratios, figures


def measure(smoke: bool) -> Section:
    """Ratios to one copy."""
    cases = [("3M", 1, False)] if smoke else [("100M", 1, False), ("100M", 2, False), ("100M", 1, True)]
    ratios, figures = list[Ratio](), dict[str, float]()
    with cluster(RayCluster()):
        for size, count, lora in cases:
            found, more = measure_size(size, count, lora, 1 if smoke else 5)
            ratios += found
            figures |= more
    return Section("transfer", tuple(ratios), figures)
