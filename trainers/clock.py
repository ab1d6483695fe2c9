"""Wall-clock laps of a loop."""

import time

from actors.recording import recorder


class Clock:
    """Seconds of named laps, measured from the construction or the lap before; a profile shows them as they are."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last, self._since_epoch = time.perf_counter(), time.time() - time.perf_counter()
        self._begin = self._last

    def lap(self, name: str) -> None:
        """End the current lap under `name`."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        recorder().span(name.removesuffix("_s"), self._since_epoch + self._last, self._since_epoch + now)
        self._last = now

    def end(self, name: str, step: int) -> None:
        """Of all laps so far, which are those of one step of what is called `name`: for a profile."""
        recorder().span(f"{name} {step}", self._since_epoch + self._begin, self._since_epoch + self._last, step=step)
