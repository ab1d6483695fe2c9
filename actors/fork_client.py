"""What stands for Python where Castor started Ray: it has a process forked, hands signals on, and ends as that does.

Run as a script, by a Python without anything around it, so that it is there at once; `python` in the folder does that.
Where nobody forks, it becomes the Python that it stands for.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

VLLM = "VLLM_PLUGINS"  # in the environment of every process that is to hold an engine
NEXT = -1  # in place of a process's number: the server is another node's


def main() -> None:
    """Ask, and wait for the end."""
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    library = "vllm" if VLLM in os.environ else "torch"
    for server in itertools.count():  # one for each node of this machine, in the order in which they have begun
        _ask(folder, f"{library}.{server}" if server else library, arguments)


def _ask(folder: Path, name: str, arguments: list[str]) -> None:
    """Return if that server is another node's."""
    with socket.socket(socket.AF_UNIX) as server, server.makefile() as answers:
        try:
            server.connect(str(folder / name))
            _send(server, folder, arguments)
            number = int(answers.readline())
        except (OSError, ValueError):  # there is no server, or it died while this process waited for its turn
            _be_python(arguments)  # no fork has said its number: none has begun to run
        if number == NEXT:
            return
        for asking in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(asking, lambda told, _: os.kill(number, told))
        code = int(answers.readline() or 1)
    sys.exit(code if code >= 0 else 128 - code)


def _send(server: socket.socket, folder: Path, arguments: list[str]) -> None:
    files = [int(name) for name in os.listdir("/dev/fd")]
    files = [file for file in files if file != server.fileno() and _is_open(file)]
    asked = {
        "python": str(folder / "python"),
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "files": files,
    }
    message = json.dumps(asked).encode() + b"\n"
    socket.send_fds(server, [message[:1]], files)
    server.sendall(message[1:])


def _be_python(arguments: list[str]) -> NoReturn:
    """As if nothing had stood for it."""
    os.execv(sys.executable, [sys.executable, *arguments])


def _is_open(file: int) -> bool:
    """The list has the one it was read from, too."""
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
