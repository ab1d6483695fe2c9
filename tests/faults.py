"""Faults that strike inside a worker at a named point of its work, and leave a witness."""

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil
import ray

Victim = Literal["itself", "another"]


class Faults:
    """Faults that are armed and have struck, as files of a folder: every process of the machine sees them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder

    def arm(self, count: int, how: int = signal.SIGKILL, where: str = "sampling") -> None:
        """Arm `count` faults at the point `where`, each of which sends one process the signal `how`."""
        for number in range(count):
            (self.folder / f"{where}-{number}.armed").write_text(str(how))

    def strike(self, where: str = "sampling") -> None:
        """Kill or stop this process, if a fault is armed at the point `where`."""
        for armed in sorted(self.folder.glob(f"{where}-*.armed")):
            struck = armed.with_suffix(f".{os.getpid()}")
            try:
                armed.rename(struck)
            except FileNotFoundError:
                continue  # another process was faster
            os.kill(os.getpid(), int(struck.read_text()))

    def struck(self) -> int:
        """How many faults have killed or stopped a process, which is no more."""
        victims = [int(path.suffix[1:]) for path in self.folder.iterdir() if path.suffix != ".armed"]
        assert not any(_runs(process) for process in victims)
        return len(set(victims))


def mortal(worker: type, faults: Faults) -> type:
    """A rollout worker that an armed fault kills between its first and its second chunk."""

    class Mortal(worker):
        def generate(self, requests: Any, decode: bool) -> Iterator[Any]:
            for number, item in enumerate(super().generate(requests, decode)):
                if number == 2:  # a chunk is two items
                    faults.strike()
                yield item

    return Mortal


def mortal_while_loading(worker: type, faults: Faults) -> type:
    """A rollout worker with an engine of its own that an armed fault strikes once it has loaded a part of an update."""

    class Mortal(worker):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            from engines.weights.vllm_transfer import ProvenTransfer

            load = ProvenTransfer._load

            def load_and_strike(engine: Any, tensors: Any) -> None:
                load(engine, tensors)
                faults.strike("loading")

            ProvenTransfer._load = load_and_strike

    return Mortal


class FaultyBoard:
    """A progress board at whose `post` a worker dies: where it reports a step, before it does anything further.

    It stands in for the handle of a `ProgressBoard` and is sent to the workers like one; an entry reaches the board
    before the fault. Rank 0 reports, so a fault at a step kills that rank itself or another rank of the stage. Each
    fault strikes once, however often its step is repeated.
    """

    def __init__(self, board: Any, faults: Mapping[int, Victim], witnesses: Path) -> None:
        witnesses.mkdir()
        self.board, self.faults, self.witnesses = board, dict(faults), witnesses

    def __getattr__(self, method: str) -> Any:
        """Every other method is the board's."""
        if method.startswith("__") or method == "board":  # asked for while this object is unpickled
            raise AttributeError(method)
        return getattr(self.board, method)

    @property
    def post(self) -> "FaultyBoard":
        """What `.remote` is called on."""
        return self

    def remote(self, progress: Any) -> None:
        """Hand `progress` to the board, and strike if a fault is due."""
        ray.get(self.board.post.remote(progress), timeout=60)
        victim = self.faults.get(progress.done)
        witness = self.witnesses / f"step-{progress.done}-{victim}"
        if victim is None or witness.exists():
            return
        process = os.getpid() if victim == "itself" else _other_rank()
        witness.write_text(str(process))
        os.kill(process, signal.SIGKILL)

    def struck(self) -> list[str]:
        """The faults that have happened, by name. Each has left the number of a process that is no more."""
        found = sorted(self.witnesses.iterdir())
        assert not any(_runs(int(witness.read_text())) for witness in found)
        return [witness.name for witness in found]


def _other_rank() -> int:
    """The process of the other rank of a stage on two workers. A group that was lost may still be ending."""
    this = psutil.Process()
    others = [process for process in this.parent().children() if process.pid != this.pid and _runs(process.pid)]
    workers = [process for process in others if "RayTrainWorker" in " ".join(process.cmdline())]
    return max(workers, key=lambda process: process.create_time()).pid


def _runs(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
