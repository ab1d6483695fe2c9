"""Where workers of a Ray that Castor started come from: a process that has imported what they need, once, and forks.

Run as a script (with -P: modules beside it have names of the standard library), so that nothing of Castor is imported
before a worker is there: its start is measured from then on.
`actors.forking` starts it with a folder, the sets of libraries that will be needed, and the sockets in the folder; it
holds its standard input, at whose end it ends.
Whoever connects to a socket (`actors/fork_client.py`) asks for a process with its own arguments, environment, working
directory and open files; the socket says which libraries it is to have. What does not need Ray is imported at once, and
the rest for the first one who asks, under its environment, which holds what Ray tells its workers. From then on it is a
server of that one's node: where this machine has another node, its processes ask the next server, at the next socket.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

# none of them starts a thread, which would be missing after a fork; what transformers imports late is named
COMMON = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.modeling_utils",
    "peft",
)
LIBRARIES = {
    "torch": ("ray._private.workers", "ray.train.torch", "ray.tune", "ray.serve", "deepspeed"),
    "vllm": ("ray._private.workers", "ray.serve", "vllm.entrypoints.llm", "vllm.entrypoints.openai.api_server"),
}
# what a set has that does not import Ray, which has to know its node by then: it may be there before Ray is
BEFORE_RAY = {
    "torch": ("deepspeed",),
    "vllm": (
        "vllm.v1.worker.cpu_worker",
        "vllm.v1.attention.backends.cpu_attn",
        "vllm.model_executor.models.transformers",
        "vllm.entrypoints.openai.chat_completion.protocol",
    ),
}
NODE = "RAY_RAYLET_PID"  # Ray reads it when it is imported: a worker ends with that process
NEXT = -1  # in place of a process's number: whoever asked is of another node
BACKLOG = 256  # workers that may wait for the first one's imports
MESSAGE = 1 << 20  # bytes of one read
FILES = 253  # that a process may hand over: Linux takes no more at a time


@dataclass(frozen=True)
class Asked:
    """A process to be made, and where to say how it ended."""

    client: socket.socket
    python: str  # the executable that forks, for processes of this one
    arguments: list[str]  # of a Python: a script or `-c` and code, with arguments of its own
    environment: dict[str, str]
    folder: str
    files: dict[int, int]  # the number each is to have, by the one it has here

    def close_files(self) -> None:
        for file in self.files:
            os.close(file)


@dataclass(frozen=True)
class Child:
    """A process that was made."""

    client: socket.socket
    number: int
    handle: int  # readable once it has ended


class Server:
    """Forks for the processes of one node, of which it learns from the first one that connects."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        """`name` is that of a set of libraries."""
        self.name, self.environment = name, dict[str, str]()  # under which they were imported
        self._listen(listener)

    def _listen(self, listener: socket.socket) -> None:
        self.listener, self.selector = listener, selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ)

    def serve(self) -> None:
        """Until standard input ends."""
        while True:
            for key, _ in self.selector.select():
                if self.selector.get_map().get(key.fd) is not key:
                    continue  # an event before this one has ended what it is about
                if key.fd == sys.stdin.fileno():
                    return
                if key.fileobj is self.listener:
                    if (asked := _receive(self.listener.accept()[0])) is not None:
                        self._answer(asked)
                elif key.fd == key.data.handle:
                    self._tell(key.data)
                else:
                    self._kill(key.data)

    def _answer(self, asked: Asked) -> None:
        if self.environment or self._take_node(asked.environment):
            if self.environment.get(NODE) == asked.environment.get(NODE):
                self._fork(asked)
                return
            _say(asked.client, NEXT)
        asked.close_files()
        asked.client.close()

    def _take_node(self, environment: dict[str, str]) -> bool:
        """Import what is left for the node of this environment. A fork of this process stays as it is, and listens at
        the next socket: there False is returned.
        """
        os.environ.update(environment)
        _import(BEFORE_RAY[self.name])
        next_one = listening(next_place(Path(self.listener.getsockname())))
        if not os.fork():
            self.listener.close()
            self.selector.close()
            self._listen(next_one)
            return False
        next_one.close()
        self.environment = environment
        with _undrawn():
            _import(LIBRARIES[self.name])
        _settle()
        return True

    def _fork(self, asked: Asked) -> None:
        if not (number := os.fork()):
            self._become(asked)
        asked.close_files()
        child = Child(asked.client, number, os.pidfd_open(number))
        self.selector.register(child.client, selectors.EVENT_READ, child)
        self.selector.register(child.handle, selectors.EVENT_READ, child)

    def _tell(self, child: Child) -> None:
        """It has ended: whoever asked for it ends with the same code."""
        _, status = os.waitpid(child.number, 0)
        self.selector.unregister(child.handle)
        os.close(child.handle)
        if child.client.fileno() in self.selector.get_map():
            self.selector.unregister(child.client)
            _say(child.client, os.waitstatus_to_exitcode(status))
        child.client.close()

    def _kill(self, child: Child) -> None:
        """Whoever asked for it was killed."""
        self.selector.unregister(child.client)
        signal.pidfd_send_signal(child.handle, signal.SIGKILL)

    def _become(self, asked: Asked) -> NoReturn:
        """Be the process that was asked for."""
        code = 1
        try:
            _say(asked.client, os.getpid())  # not by the server: it may die here, and the process be started twice
            for key in list(self.selector.get_map().values()):
                os.close(key.fd)
            self.selector.close()
            asked.client.detach()  # stays open: without a server, too, whoever asked waits for this process to end
            os.setpgid(0, 0)  # as Ray has it: it ends all processes of a worker's group with it
            _take(asked.files)
            os.environ.clear()
            os.environ.update(asked.environment)
            os.chdir(asked.folder)
            multiprocessing.set_executable(asked.python)  # an engine's process is a fork, too
            code = _run(asked.arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def main() -> None:
    """One server for each set of libraries, of which all but the first are forks of it."""
    folder, soon, *files = sys.argv[1:]  # `soon` names sets, with commas between them
    listeners = {name: socket.socket(fileno=int(file)) for name, file in zip(LIBRARIES, files, strict=True)}
    _import(COMMON)
    first, *others = LIBRARIES
    mine = next((name for name in others if not os.fork()), first)
    for name, listener in listeners.items():
        if name != mine:
            listener.close()
    if mine in soon.split(","):
        _import(BEFORE_RAY[mine])
    Server(listeners[mine], mine).serve()
    if mine == first:
        shutil.rmtree(folder, ignore_errors=True)  # whoever made the folder may have been killed
    os._exit(0)  # libraries have something to say about an end without workers


def _import(libraries: tuple[str, ...]) -> None:
    for library in libraries:
        importlib.import_module(library)


def _settle() -> None:
    """What is left to do once everything is imported."""
    # of two libraries that look for the place of a process's title, the second does not find it: vLLM takes Ray's
    titles: Any = importlib.import_module("setproctitle")
    titles.setproctitle = importlib.import_module("ray._raylet").setproctitle
    gc.collect()
    gc.freeze()  # a fork's collections pass over what came from here: they would take a second each, and copy it


@contextmanager
def _undrawn() -> Iterator[None]:
    """While the body runs, a class that becomes an actor's is numbered by the operating system.

    Ray's generator cannot be seeded. Had it given out its first number here, all forks would go on with the same ones:
    workers would make different objects under one name, and Ray ends the second to do so.
    """
    actor: Any = importlib.import_module("ray.actor")
    kind = actor.ActorClassID
    actor.ActorClassID = SimpleNamespace(from_random=lambda: kind(os.urandom(kind.size())))
    try:
        yield
    finally:
        actor.ActorClassID = kind


def listening(place: Path) -> socket.socket:
    """A new socket there."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(place))
    made.listen(BACKLOG)
    return made


def next_place(place: Path) -> Path:
    """NAME, NAME.1, NAME.2: the client looks for them in this order."""
    return place.with_suffix(f".{int(place.suffix[1:] or 0) + 1}")


def _receive(client: socket.socket) -> Asked | None:
    """None: whoever connected was killed before it had asked."""
    data, files, _, _ = socket.recv_fds(client, MESSAGE, FILES)
    while not data.endswith(b"\n"):
        more = client.recv(MESSAGE)
        if not more:
            for file in files:
                os.close(file)
            return None
        data += more
    said = json.loads(data)
    said["files"] = dict(zip(files, said["files"], strict=True))
    return Asked(client, **said)


def _say(client: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # it was killed, which is the next event
        client.sendall(f"{number}\n".encode())


def _take(files: dict[int, int]) -> None:
    """Give every open file the number it is to have. None of the numbers may be taken by another one meanwhile."""
    above = max(*files.values(), *files) + 1
    moved = {}
    for file, number in files.items():
        moved[os.dup2(file, above + number)] = number
        os.close(file)
    for file, number in moved.items():
        os.dup2(file, number)
        os.close(file)


def _run(arguments: list[str]) -> int:
    """As Python would run them; returns the exit code."""
    import numpy
    import torch

    numpy.random.seed()  # Python's own generator is seeded anew in every fork; torch's begins alike in all processes

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # at its import it read that of the server
    while arguments[0].startswith("-") and arguments[0] != "-c":  # how this process was started decides
        arguments = arguments[2 if arguments[0] == "-X" else 1 :]
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), vars(sys.modules["__main__"]))
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main()
