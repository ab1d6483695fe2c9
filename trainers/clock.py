"""Wall-clock laps of a loop."""

import time

from actors.recording import recorder


class Clock:
    """Seconds of named laps, measured from the construction or the lap before; a profile shows them as they are."""

    def __init__(self, step: int) -> None:
        """Of a step."""
        self.seconds: dict[str, float] = {}
        self._step, self._epoch = step, time.time() - time.perf_counter()
        self._begin = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the current lap under `name`."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._record(name.removesuffix("_s"), self._last, now)
        self._last = now

    def end(self) -> None:
        """The step's last lap has ended."""
        self._record("step", self._begin, self._last)

    def _record(self, name: str, begin: float, end: float) -> None:
        recorder().span(name, self._epoch + begin, self._epoch + end, step=self._step)
