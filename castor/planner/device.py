"""What computes: GPUs by their public figures and the shares of them that are reached, CPUs by a measurement."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from castor.io.errors import CastorError


@dataclass(frozen=True)
class Device:
    """One GPU, or one thread of a CPU. Rates are those of its data sheet; shares say how much of them is reached.

    The shares of GPUs are calibrated against a published step of Llama-3.1-8B on 8 H100s (docs/scale.md), and taken for
    other cards as they are.
    """

    name: str
    flops: float  # FLOP/s, dense, in the type models compute in
    bandwidth: float  # bytes/s of its memory
    memory_gib: float  # that programs can use
    link: float  # bytes/s to another one of its node, in one direction
    network: float  # bytes/s to another node, of each GPU
    host_link: float  # bytes/s to the node's memory
    host_bandwidth: float = 2e10  # bytes/s of the node's memory, of each GPU: AdamW of offloaded states
    training: float = 0.40  # share of `flops` in forward and backward passes with gradients
    forward: float = 0.40  # ... in forward passes alone
    prefill: float = 0.45  # ... of prompts in vLLM
    reading: float = 0.7  # share of `bandwidth` that decoding and the optimiser reach
    moving: float = 0.7  # share of `link`, `network` and `host_link`
    pageable: float = 4e9  # bytes/s of one copy to, from or within ordinary memory of the node
    broadcast: float = 9e9  # bytes/s of weights from a learner to its engines over nccl, gloo and ipc
    iteration_s: float = 0.004  # of one decoded token of all responses under way, beside reading
    sequence_s: float = 1.0e-5  # ... and for each response: sampling, bookkeeping
    reduction_s: float = 1.5e-5  # one sum over the GPUs of an engine with tensor parallelism
    pass_s: float = 0.01  # of a micro-batch beside its FLOPs: launches, packing
    call_s: float = 0.01  # of a call of an actor: Ray, reading its experience
    transfer_s: float = 0.1  # of a transfer of weights beside its bytes, on either side
    cores: float = 1.0  # how many of it a node has, by the work they get done together: of a CPU

    @property
    def is_cpu(self) -> bool:
        """Whether it is a thread of a CPU, of which a node has several."""
        return self.name.startswith("CPU")


H100 = Device("H100", 989e12, 3.35e12, 79, link=450e9, network=50e9, host_link=55e9)
DEVICES = {
    each.name: each
    for each in (
        H100,
        replace(H100, name="H200", bandwidth=4.8e12, memory_gib=139),
        Device("B200", 2250e12, 8.0e12, 178, link=900e9, network=50e9, host_link=55e9),
        Device("A100", 312e12, 2.04e12, 79, link=300e9, network=6.25e9, host_link=25e9),
        Device("A100-40GB", 312e12, 1.56e12, 39, link=300e9, network=6.25e9, host_link=25e9),
        Device("L40S", 362e12, 0.864e12, 44, link=25e9, network=6.25e9, host_link=25e9),
        Device("A10G", 70e12, 0.6e12, 22, link=12e9, network=1.5e9, host_link=12e9),
    )
}
"""By name. SXM cards where there are several; networks are those of AWS's instances with 8 of them."""


def device(name: str) -> Device:
    """The GPU of that name. Raises CastorError for one that is not known."""
    found = {known.lower(): each for known, each in DEVICES.items()}.get(name.lower())
    if found is None:
        raise CastorError(f"no figures are known of the GPU {name!r}: --gpu-type takes {', '.join(DEVICES)}")
    return found


def read_device(path: Path) -> Device:
    """A device from a calibration, a JSON file with the fields of `Device`. Raises CastorError when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CastorError(
            f"{path} is no calibration ({error}): write one with `python -m benchmarks.bench.calibration > FILE`"
        ) from None
    known = {each.name for each in fields(Device)}
    if not isinstance(values, dict) or set(values) - known or not {"name", "flops"} <= set(values):
        raise CastorError(
            f"{path} is no calibration: it has to hold the fields of a device ({', '.join(sorted(known))})"
        )
    wrong = sorted(
        key for key, value in values.items() if key != "name" and (not isinstance(value, int | float) or value < 0)
    )
    if wrong:
        raise CastorError(f"{path}: {wrong[0]} is {values[wrong[0]]!r}, and has to be a number that is not negative")
    try:
        return Device(**values)
    except TypeError as error:
        raise CastorError(f"{path} is no calibration ({error})") from None
