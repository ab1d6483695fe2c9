"""Parts of streamed answers on their way from a policy's replica to the gateway: over a socket of the gateway's own.

A call through Ray Serve's handle chooses the replica, carries the request there and tells of failures. What is streamed
meanwhile does not take that way, on which a part costs more processor time than the tokens in it: a replica keeps one
connection to each gateway, encrypted where Ray's are, which begins with the gateway's secret. Then come frames of its
answers, in any order: the number of the answer (8 bytes), the length of the part (4 bytes, both big-endian), and the
part. An empty one ends it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast
from weakref import WeakValueDictionary

from serve.asgi import Head
from serve.tls import tls

log = logging.getLogger("ray.serve")
FRAME = struct.Struct("!QI")
SECRET_BYTES = 32
CONNECT_S = 5.0  # for a connection, and for its secret
LATE_S = 10.0  # for parts to arrive after the call has ended that has sent them
STUCK_S = 60.0  # for a gateway to read what fills the buffers between
END = b""


@dataclass(frozen=True)
class Address:
    """Where the parts of an answer are expected."""

    host: str
    port: int
    secret: bytes = field(repr=False)
    answer: int  # its number


@dataclass(frozen=True)
class Opening:
    """The first part of an answer: its head, and the name of the weights that it comes from."""

    head: Head
    version: str

    def to_bytes(self) -> bytes:
        """As it is sent."""
        return json.dumps([self.head.status, self.head.media_type, self.version]).encode()

    @classmethod
    def from_bytes(cls, part: bytes) -> Opening:
        """As it was."""
        status, media_type, version = json.loads(part)
        return cls(Head(status, media_type), version)


class Incoming:
    """One answer on its way."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.connection: _Connection | None = None  # over which it comes, once it does
        self._parts: asyncio.Queue[bytes | BaseException] = asyncio.Queue()
        self._late: asyncio.TimerHandle | None = None

    def of(self, call: Awaitable[Any]) -> None:
        """It is sent by this call: with its failure the answer is broken off, and soon after its end, all is there."""
        self._call = asyncio.ensure_future(call)  # kept: a loop knows its tasks by weak references alone
        self._call.add_done_callback(self._call_ended)

    def add(self, part: bytes) -> None:
        """One more part."""
        self._parts.put_nowait(part)

    def fail(self, error: BaseException) -> None:
        """No further part will come."""
        self._parts.put_nowait(error)

    def close(self) -> None:
        """Nobody reads on."""
        if self._late is not None:
            self._late.cancel()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """As they come. Raises ConnectionError when the rest of them will not, and whatever the call has raised."""
        while (part := await self._parts.get()) != END:
            if isinstance(part, BaseException):
                raise part
            yield part

    def _call_ended(self, call: asyncio.Future[Any]) -> None:
        if call.cancelled():
            self.fail(ConnectionAbortedError("the call that sends the answer was cancelled"))
        elif (error := call.exception()) is not None:
            self.fail(error)
        else:
            lost = ConnectionAbortedError(f"the end of an answer has not come within {LATE_S:.0f} s of its sending")
            self._late = asyncio.get_running_loop().call_later(LATE_S, self.fail, lost)


class Inbox:
    """The gateway's end."""

    def __init__(self) -> None:
        self._secret, self._last = secrets.token_bytes(SECRET_BYTES), 0
        self._expected: dict[int, Incoming] = {}
        self._connections = set[_Connection]()
        self._server: asyncio.Server | None = None

    async def open(self, host: str) -> None:
        """Listen at a free port of this address. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, 0, ssl=tls(ssl.Purpose.CLIENT_AUTH))
        self._host, self._port = host, self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Listen no more, and end all connections."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()

    @contextmanager
    def expecting(self) -> Iterator[Incoming]:
        """An answer, for as long as the body reads it."""
        self._last += 1
        answer = Incoming(Address(self._host, self._port, self._secret, self._last))
        self._expected[answer.address.answer] = answer
        try:
            yield answer
        finally:
            del self._expected[answer.address.answer]
            answer.close()

    def trusts(self, secret: bytes) -> bool:
        """Whether a connection that begins with it is a replica's."""
        return hmac.compare_digest(secret, self._secret)

    def opened(self, connection: _Connection) -> None:
        """A replica, or a stranger, has connected."""
        self._connections.add(connection)

    def take(self, number: int, part: bytes, connection: _Connection) -> None:
        """A part has come; if nobody reads the answer any more, for nothing."""
        answer = self._expected.get(number)
        if answer is not None:
            answer.connection = connection
            answer.add(part)

    def lost(self, connection: _Connection) -> None:
        """All answers that came over the connection are broken off."""
        self._connections.discard(connection)
        for answer in self._expected.values():
            if answer.connection is connection:
                answer.fail(ConnectionResetError("the connection to the policy's replica was lost"))


class _Connection(asyncio.Protocol):
    """From one replica."""

    transport: asyncio.Transport

    def __init__(self, inbox: Inbox) -> None:
        self.inbox, self.trusted, self.read = inbox, False, bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        self.inbox.opened(self)
        self.silent = asyncio.get_running_loop().call_later(CONNECT_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self.silent.cancel()
        self.inbox.lost(self)

    def data_received(self, data: bytes) -> None:
        self.read += data
        if not self.trusted:
            if len(self.read) < SECRET_BYTES:
                return
            if not self.inbox.trusts(bytes(self.read[:SECRET_BYTES])):
                self.transport.abort()
                return
            self.trusted = True
            self.silent.cancel()
            del self.read[:SECRET_BYTES]
        begin = 0
        while len(self.read) >= begin + FRAME.size:
            number, length = FRAME.unpack_from(self.read, begin)
            end = begin + FRAME.size + length
            if len(self.read) < end:
                break
            self.inbox.take(number, bytes(self.read[begin + FRAME.size : end]), self)
            begin = end
        del self.read[:begin]


class Outbox:
    """A replica's end: one connection to each gateway."""

    def __init__(self) -> None:
        self._gateways: dict[Address, _Gateway] = {}
        self._connecting = WeakValueDictionary[Address, asyncio.Lock]()  # there while somebody connects

    async def send(self, to: Address, part: bytes) -> None:
        """Send a part; waits while the gateway reads too slowly. Raises ConnectionError when it cannot be reached, or
        does not read.
        """
        where = replace(to, answer=0)
        gateway = self._gateways.get(where)
        if gateway is None or gateway.transport.is_closing():
            gateway = await self._connect(where)
        gateway.transport.write(FRAME.pack(to.answer, len(part)) + part)
        if not gateway.reads.is_set():
            try:
                await asyncio.wait_for(gateway.reads.wait(), STUCK_S)
            except TimeoutError:
                gateway.transport.abort()
                raise ConnectionAbortedError(f"the gateway has read nothing for {STUCK_S:.0f} s") from None
        if gateway.transport.is_closing():
            raise ConnectionResetError("the connection to the gateway was lost")

    async def _connect(self, where: Address) -> _Gateway:
        async with self._connecting.setdefault(where, asyncio.Lock()):
            self._gateways = {each: it for each, it in self._gateways.items() if not it.transport.is_closing()}
            if where not in self._gateways:  # else others have waited for it, too
                connecting = asyncio.get_running_loop().create_connection(
                    _Gateway, where.host, where.port, ssl=tls(ssl.Purpose.SERVER_AUTH)
                )
                try:
                    _, gateway = await asyncio.wait_for(connecting, CONNECT_S)
                except OSError as error:  # a TimeoutError is one, too
                    lost = (
                        f"the gateway cannot be reached at {where.host}:{where.port}, where it takes what is streamed"
                    )
                    log.error("%s (%s): all nodes of a cluster must reach each other's ports", lost, error)
                    raise ConnectionRefusedError(lost) from error
                gateway.transport.write(where.secret)
                self._gateways[where] = gateway
            return self._gateways[where]


class _Gateway(asyncio.Protocol):
    """A connection to it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.reads = asyncio.Event()  # as fast as is written
        self.reads.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it

    def pause_writing(self) -> None:
        self.reads.clear()

    def resume_writing(self) -> None:
        self.reads.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reads.set()  # whoever waits learns that it is closing
