"""Where the gateway listens: a web server of its own, in the loop that calls it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

KEEP_ALIVE_S = 90.0  # longer than clients keep a connection that they do not use
POLL_S = 0.01


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the process that the server is a part of."""
        yield


class Listener:
    """An app on one address, which several processes of a machine may share."""

    def __init__(self, app: Any, host: str, port: int, drain_s: float) -> None:
        """Take the address. `drain_s`: what answers under way are granted when it closes. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, port), family=family, reuse_port=True)
        config = uvicorn.Config(
            app, lifespan="off", ws="none", access_log=False, log_config=None, server_header=False, proxy_headers=False,
            timeout_keep_alive=int(KEEP_ALIVE_S), timeout_graceful_shutdown=int(drain_s),
        )  # fmt: skip
        self.server = _Server(config)
        self.task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Answer from now on."""
        self.task = asyncio.create_task(self.server.serve(sockets=[self.socket]))
        while not self.server.started:
            self.check()
            await asyncio.sleep(POLL_S)

    def check(self) -> None:
        """Raise RuntimeError when it does not listen any more."""
        if self.task is None or self.task.done():
            error = self.task.exception() if self.task is not None and not self.task.cancelled() else None
            raise RuntimeError("the gateway's web server has ended") from error

    async def close(self) -> None:
        """Take no more connections, and end when the answers under way have."""
        self.server.should_exit = True
        if self.task is not None:
            await self.task
