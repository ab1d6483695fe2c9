"""Wall-clock laps of a loop."""

import time


class Clock:
    """Seconds of named laps, measured from the construction or the lap before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the current lap under `name`."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
