"""What a part of the check is given, and how it measures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Figures = dict[str, float | str]  # by their names in the table

GIB = 1 << 30
# dense bfloat16 FLOP/s of one card, from the makers' data sheets; the first name that is in the card's own counts
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}


@dataclass(frozen=True)
class Setting:
    """Where a part runs. On a CPU the shapes are small: it is then a test of the part itself."""

    device: torch.device

    @property
    def small(self) -> bool:
        """Whether shapes are those of a test."""
        return self.device.type == "cpu"

    @property
    def peak_flops(self) -> float | None:
        """Dense bfloat16 FLOP/s of the card; None: not known."""
        if self.small:
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)

    def seconds(self, work: Callable[[], object], times: int = 5) -> float:
        """Median seconds of `work`, after one call that is not counted."""
        return statistics.median([self.once(work) for _ in range(times + 1)][1:])

    def once(self, work: Callable[[], object]) -> float:
        """Seconds of one call."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        """The most memory that was allocated on the card while `work` ran, all that was there before included."""
        if self.small:
            work()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if not self.small:
            torch.cuda.synchronize(self.device)


def close(found: torch.Tensor, wanted: torch.Tensor, bound: float) -> float:
    """The largest difference. Raises RuntimeError when it exceeds `bound`, or a number is not finite."""
    difference = float((found.double() - wanted.double()).abs().max())
    if not difference <= bound:
        raise RuntimeError(f"two ways to the same numbers differ by {difference:.3g}, more than {bound:g}")
    return difference
