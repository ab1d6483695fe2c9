"""Parts of answers over real sockets: all of them, in order, for whom they are; and an end where they will not come."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from ray._common.tls_utils import generate_self_signed_tls_certs

from serve import parts
from serve.asgi import Head
from serve.parts import END, Address, Inbox, Incoming, Opening, Outbox

T = TypeVar("T")
HERE = "127.0.0.1"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}  # replicas have the second one
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(scope="module", params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run[Any]:
    def in_loop(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main)

    return in_loop


@asynccontextmanager
async def listening() -> AsyncIterator[Inbox]:
    inbox = Inbox()
    await inbox.open(HERE)
    try:
        yield inbox
    finally:
        inbox.close()


async def sent(outbox: Outbox, to: Address, content: list[bytes]) -> None:
    for part in [*content, END]:
        await outbox.send(to, part)
        await asyncio.sleep(0)


async def read(answer: Incoming) -> list[bytes]:
    return [part async for part in answer.parts()]


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


@given(st.lists(st.lists(st.binary(min_size=1, max_size=2000), max_size=8), min_size=1, max_size=6))
def test_answers_side_by_side_come_whole_and_in_order_over_one_connection(
    run: Run[Any], contents: list[list[bytes]]
) -> None:
    async def main() -> list[list[bytes]]:
        outbox, answers = Outbox(), []
        async with listening() as inbox, asyncio.TaskGroup() as group:
            for content in contents:
                expecting = inbox.expecting()  # never left: they end with the inbox
                answer = expecting.__enter__()
                answer.of(group.create_task(sent(outbox, answer.address, content)))
                answers.append((expecting, answer))
            found = [await asyncio.wait_for(read(answer), 10) for _, answer in answers]
            assert len(inbox._connections) == 1
            for expecting, _ in answers:
                expecting.__exit__(None, None, None)
            return found

    assert run(main()) == contents


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6), st.lists(st.integers(1, 60), max_size=20))
def test_frames_are_read_however_the_bytes_are_cut(run: Run[Any], content: list[bytes], sizes: list[int]) -> None:
    async def main() -> list[bytes]:
        async with listening() as inbox:
            with inbox.expecting() as answer:
                to = answer.address
                frames = b"".join(parts.FRAME.pack(to.answer, len(part)) + part for part in [*content, END])
                stream = to.secret + frames
                _, writer = await asyncio.open_connection(to.host, to.port)
                for size in [*sizes, len(stream)]:
                    cut, stream = stream[:size], stream[size:]
                    writer.write(cut)
                    await asyncio.sleep(0)
                found = await asyncio.wait_for(read(answer), 10)
                writer.close()
                return found

    assert run(main()) == content


def test_a_part_that_is_larger_than_the_buffers_waits_for_the_reader_and_arrives(run: Run[Any]) -> None:
    content = [bytes([number]) * 3_000_000 for number in range(4)]

    async def main() -> list[bytes]:
        outbox = Outbox()
        async with listening() as inbox:
            with inbox.expecting() as answer:
                answer.of(sent(outbox, answer.address, content))
                return await asyncio.wait_for(read(answer), 30)

    assert run(main()) == content


def test_a_stranger_is_not_heard_and_a_silent_one_is_not_waited_for(
    run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CONNECT_S", 0.2)

    async def main() -> None:
        async with listening() as inbox:
            with inbox.expecting() as answer:
                stranger = replace(answer.address, secret=bytes(parts.SECRET_BYTES))
                _, silent = await asyncio.open_connection(stranger.host, stranger.port)
                outbox = Outbox()
                await outbox.send(stranger, b"forged")
                await until(lambda: all(each.transport.is_closing() for each in outbox._gateways.values()))
                await until(lambda: not inbox._connections)
                assert answer._parts.empty()
                silent.close()

    run(main())


def test_a_gateway_that_reads_nothing_is_not_waited_for(run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "STUCK_S", 0.2)

    async def main() -> None:
        with socket.create_server((HERE, 0)) as deaf:  # connections wait to be accepted, and nobody reads
            outbox = Outbox()
            to = Address(HERE, deaf.getsockname()[1], bytes(32), 1)
            with pytest.raises(ConnectionAbortedError, match="has read nothing"):
                await sent(outbox, to, [bytes(1_000_000)] * 100)
            assert all(each.transport.is_closing() for each in outbox._gateways.values())

    run(main())


def test_an_answer_ends_with_its_connection_and_the_next_one_has_another(run: Run[Any]) -> None:
    async def main() -> None:
        outbox = Outbox()
        async with listening() as inbox:
            with inbox.expecting() as answer, inbox.expecting() as other:
                await outbox.send(answer.address, b"a part")
                incoming = answer.parts()
                assert await anext(incoming) == b"a part"
                (connection,) = inbox._connections
                connection.transport.abort()
                with pytest.raises(ConnectionResetError, match="replica was lost"):
                    await asyncio.wait_for(anext(incoming), 10)
                assert other._parts.empty()  # it had not begun, and may come over the next connection
                await until(lambda: all(each.transport.is_closing() for each in outbox._gateways.values()))
                other.of(sent(outbox, other.address, [b"another"]))
                assert await asyncio.wait_for(read(other), 10) == [b"another"]

    run(main())


def test_what_the_call_raises_ends_the_answer(run: Run[Any]) -> None:
    async def failing(outbox: Outbox, to: Address) -> None:
        await outbox.send(to, b"a part")
        raise ValueError("as the replica has it")

    async def main() -> None:
        async with listening() as inbox:
            with inbox.expecting() as answer:
                answer.of(failing(Outbox(), answer.address))
                with pytest.raises(ValueError, match="as the replica has it"):
                    await asyncio.wait_for(read(answer), 10)
            with inbox.expecting() as answer:
                call = asyncio.ensure_future(asyncio.sleep(60))
                answer.of(call)
                call.cancel()
                with pytest.raises(ConnectionAbortedError, match="cancelled"):
                    await asyncio.wait_for(read(answer), 10)

    run(main())


def test_an_end_that_does_not_come_is_not_waited_for(run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LATE_S", 0.1)

    async def main() -> None:
        async with listening() as inbox:
            with inbox.expecting() as answer:
                answer.of(asyncio.sleep(0))
                with pytest.raises(ConnectionAbortedError, match="has not come within"):
                    await asyncio.wait_for(read(answer), 10)

    run(main())


def test_parts_that_nobody_reads_any_more_disturb_nobody(run: Run[Any]) -> None:
    async def main() -> None:
        outbox = Outbox()
        async with listening() as inbox:
            with inbox.expecting() as gone:
                pass
            with inbox.expecting() as answer:
                await outbox.send(gone.address, b"late")
                answer.of(sent(outbox, answer.address, [b"in time"]))
                assert await asyncio.wait_for(read(answer), 10) == [b"in time"]

    run(main())


def test_a_gateway_that_cannot_be_reached_is_named(run: Run[Any], caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server((HERE, 0)) as closed:
        port = closed.getsockname()[1]

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError, match=f"cannot be reached at {HERE}:{port}"):
            await Outbox().send(Address(HERE, port, bytes(32), 1), b"a part")

    run(main())
    assert "must reach each other's ports" in caplog.text


def test_a_gateway_that_does_not_answer_holds_no_other_up(run: Run[Any]) -> None:
    """Nor do the answers to one gateway open a connection each."""
    with ExitStack() as open_sockets:
        deaf = open_sockets.enter_context(socket.create_server((HERE, 0), backlog=0))
        address = deaf.getsockname()
        for _ in range(8):  # nobody accepts them: at last the system takes no more
            filling = open_sockets.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(address)

        async def main() -> None:
            async with listening() as inbox:
                outbox = Outbox()
                waiting = asyncio.create_task(outbox.send(Address(*address, bytes(32), 1), b"a part"))
                await until(lambda: len(outbox._connecting) == 1)
                with inbox.expecting() as first, inbox.expecting() as second:
                    for answer in (first, second):
                        answer.of(sent(outbox, answer.address, [b"part"]))
                    assert await asyncio.gather(read(first), read(second)) == [[b"part"]] * 2
                    assert first.connection is second.connection
                assert not waiting.done()
                waiting.cancel()

        run(main())


def signed(folder: Path, name: str) -> dict[str, str]:
    """What Ray is told of a cluster with one certificate, which has signed itself."""
    certificate, key = generate_self_signed_tls_certs()
    files = {"CA_CERT": certificate, "SERVER_CERT": certificate, "SERVER_KEY": key}
    for file, content in files.items():
        (folder / f"{name}-{file}").write_text(content)
    return {"RAY_USE_TLS": "1"} | {f"RAY_TLS_{file}": str(folder / f"{name}-{file}") for file in files}


def test_where_ray_speaks_tls_parts_do_and_strangers_certificates_are_refused(
    run: Run[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def under(environment: dict[str, str]) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    ours, theirs = signed(tmp_path, "ours"), signed(tmp_path, "theirs")

    async def main() -> None:
        under(ours)
        async with listening() as inbox:
            with inbox.expecting() as answer:
                outbox = Outbox()
                answer.of(sent(outbox, answer.address, [b"a part"]))
                assert await asyncio.wait_for(read(answer), 10) == [b"a part"]
                (gateway,) = outbox._gateways.values()
                assert gateway.transport.get_extra_info("cipher")
                under(theirs)
                with pytest.raises(ConnectionError, match="cannot be reached"):
                    await Outbox().send(answer.address, b"forged")
                monkeypatch.delenv("RAY_USE_TLS")
                plain = Outbox()
                await plain.send(answer.address, b"forged")
                await until(lambda: all(each.transport.is_closing() for each in plain._gateways.values()))
                assert answer._parts.empty()

    run(main())


def test_an_opening_is_read_as_it_was_written() -> None:
    opening = Opening(Head(404, "text/event-stream; charset=utf-8"), "lag@3")
    assert Opening.from_bytes(opening.to_bytes()) == opening


def test_no_log_shows_a_secret() -> None:
    assert "secret" not in repr(Address(HERE, 1, b"secret", 1))
