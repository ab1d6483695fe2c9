"""Torch traces of actors, for the steps after the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from castor.run.profile import TRACED_STEPS


class TorchTraced:
    """Base of an actor of which a torch trace can be made."""

    _trace: Any = None

    def begin_trace(self) -> None:
        """From now on torch records what this process computes."""
        from torch.profiler import profile

        if self._trace is not None:  # of steps that are taken again
            self._trace.stop()
        self._trace = profile()
        self._trace.start()

    def end_trace(self, file: Path) -> None:
        """Write what was recorded, if anything was."""
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.stop()
            trace.export_chrome_trace(str(file))


def traced_steps(file: Path) -> Any:
    """A context in which `step()`, called after each step, leaves the trace of those of `TRACED_STEPS` in `file`."""
    from torch.profiler import profile, schedule

    left_out = TRACED_STEPS.start - 1
    return profile(
        schedule=schedule(wait=left_out - 1, warmup=1, active=len(TRACED_STEPS), repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(file)),
    )
