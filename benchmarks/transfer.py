"""How long weights take from a learner to engines: by transport, size and number of engines, beside a plain copy.

`python -m benchmarks.transfer` takes the learner's and the engines' half of every transport in processes of their own,
with random weights in the shapes of a Llama, and a copy into memory of its own in place of vLLM's loading. The former
path, `host` with blake2b over the bytes on both sides, is the last line of each block. LoRA: an adapter of all linear
layers but the head is sent over a base that is there already.

Columns, in seconds, medians over the turns: all of it, then the sender's gathering and digest, the wire (host: put and
get; gloo, ipc: where the sender waits for it), and the slowest engine's loading and digest. With the latter two they
overlap.
"""

from __future__ import annotations

import argparse
import hashlib
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
from castor.config.cluster import RayCluster
from castor.config.training import Resources
from engines.weights import collective, digest, ipc
from engines.weights.base import WeightUpdate, receiver_of, sender_class
from engines.weights.collective import Invitation

SIZES = {  # vocabulary, width, width of the MLP, layers
    "3M": (4096, 192, 512, 3),
    "100M": (32_000, 768, 2048, 7),
    "500M": (32_000, 1536, 4096, 14),
}
RANK = 16
TIMEOUT_S = 300.0


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


def former_checksum(tensor: Tensor) -> Tensor:
    """blake2b over the bytes, which a digest was made of before."""
    raw: Any = tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy()
    hashed = hashlib.blake2b(raw, digest_size=16).digest()
    return torch.frombuffer(bytearray(hashed), dtype=torch.int64)


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
        self.plain = digest.checksum
        self.groups = {group: group.finish for group in (collective.Group, ipc.Group)}
        self.get, self.put = ray.get, ray.put

    def reset(self, former: bool) -> None:
        """Start the watch from nothing."""
        self.watch.seconds.clear()
        checksum = former_checksum if former else self.plain
        digest.checksum = self.watch.timed("digest", checksum)
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
        copies = {name: torch.zeros_like(tensor) for name, tensor in self.weights.items()}
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            for name, tensor in self.weights.items():
                copies[name].copy_(tensor)
            times.append(time.perf_counter() - begin)
        return min(times)

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


def turn(learner: Any, engines: list[Any], transport: str, former: bool, group: list[Any]) -> dict[str, float]:
    """One transfer: seconds by what they went into."""
    get([each.reset.remote(former) for each in (learner, *engines)], TIMEOUT_S, "reset")
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
        "gather": sent.get("gather", 0.0),
        "digest": sent["digest"],
        "wire": sent.get("wire", 0.0) + (slowest["wire"] if transport == "host" else 0.0),
        "load": slowest["load"],
        "digest ": slowest["digest"],
    }


def measure(size: str, dtype: str, count: int, lora: bool, turns: int) -> None:
    """Print one block of the table."""
    options = [actor_options(Resources(cpus=0), f"bench-{i}") for i in range(count + 1)]
    learner: Any = cast(Any, Learner).options(**options[0]).remote()
    engines = [cast(Any, Engine).options(**each).remote() for each in options[1:]]
    total = get(learner.load.remote(size, dtype, lora), TIMEOUT_S, "the learner")
    get([engine.load.remote(size, dtype, lora) for engine in engines], TIMEOUT_S, "an engine")
    plain = get(learner.memcpy.remote(), TIMEOUT_S, "the learner")
    for transport, former in (("host", False), ("gloo", False), ("ipc", False), ("host", True)):
        group = []
        if transport != "host":
            group = [vars(get(learner.invite.remote(transport, count), TIMEOUT_S, "the learner"))]
        rows = [turn(learner, engines, transport, former, group) for _ in range(turns + 1)][1:]
        middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        label = f"{size}{' LoRA' if lora else ''}"
        cells = "  ".join(f"{seconds:7.3f}" for seconds in middle.values())
        print(
            f"{label:10} {total >> 20:6} {count:7}  {'former' if former else transport:7} {cells} {plain:8.3f} "
            f"{middle['all'] / plain:6.1f}",
            flush=True,
        )
    for actor in (learner, *engines):
        ray.kill(actor)


def rates() -> None:
    """Print what a copy and the digests do in a second, in one thread."""
    torch.set_num_threads(1)
    tensor = torch.randn(64 << 20)
    room = torch.zeros_like(tensor)
    for name, function in (
        ("memcpy", lambda: room.copy_(tensor)),
        ("digest", lambda: digest.checksum(tensor)),
        ("blake2b", lambda: former_checksum(tensor)),
    ):
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
        print(f"{name:8} {tensor.nbytes / min(times) / 1e9:6.2f} GB/s")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--engines", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    rates()
    columns = "  ".join(f"{name:>7}" for name in ("all", "gather", "digest", "wire", "load", "digest"))
    print(f"\n{'weights':10} {'MiB':>6} {'engines':>7}  {'':7} {columns} {'memcpy':>8} {'ratio':>6}")
    with cluster(RayCluster(num_cpus=8, object_store_mib=4096)):
        for size in args.sizes:
            for count in args.engines:
                measure(size, args.dtype, count, False, args.turns)
            measure(size, args.dtype, args.engines[0], True, args.turns)


if __name__ == "__main__":
    main()
