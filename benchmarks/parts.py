"""What a part of a streamed answer costs from a replica to its caller: through Ray Serve's handle, or over a socket.

`python -m benchmarks.parts [--turns 5]`. A replica streams parts with pauses between them, several answers at a time:
as items of a streaming call by gRPC and as objects of Ray, and as `serve.parts` sends them. All ways take turns. Told
are the CPU milliseconds a part of caller and replica together, medians of the turns, and the ratio of those of the
handle's ways to the socket's of the same turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import psutil
import ray
from ray import serve

from serve.parts import END, Address, Inbox, Outbox
from serve.replicas import ONE_LOOP

PART, PARTS, PAUSE_S = b"data: " + bytes(200) + b"\n\n", 64, 0.003
SOCKET, DIRECT, OBJECTS = "socket", "handle, gRPC", "handle, objects"
AT_A_TIME, ANSWERS = (1, 16), 48
ANSWER_S = 60.0


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"runtime_env": {"env_vars": ONE_LOOP}})
class Answers:
    """The replica."""

    def __init__(self) -> None:
        self.outbox = Outbox()

    async def streamed(self) -> AsyncIterator[bytes]:
        """Parts, as items of the call."""
        for _ in range(PARTS):
            await asyncio.sleep(PAUSE_S)
            yield PART

    async def send(self, to: Address) -> None:
        """Parts, over the socket."""
        async for part in self.streamed():
            await self.outbox.send(to, part)
        await self.outbox.send(to, END)

    async def number(self) -> int:
        """Of its process."""
        return psutil.Process().pid


async def many(at_a_time: int, one: Callable[[], Awaitable[int]]) -> None:
    """Ask for all answers, so many at a time. Raises RuntimeError when a part of one is missing."""
    left = iter(range(ANSWERS))

    async def worker() -> None:
        for _ in left:
            if (came := await asyncio.wait_for(one(), ANSWER_S)) != PARTS:
                raise RuntimeError(f"{came} parts of {PARTS} came")

    await asyncio.gather(*(worker() for _ in range(at_a_time)))


async def measured(handle: Any, turns: int) -> dict[tuple[int, str], list[float]]:
    """By number at a time and way: CPU milliseconds a part, turn by turn."""
    inbox = Inbox()
    await inbox.open("127.0.0.1")
    direct = handle.options(_by_reference=False)

    async def by_socket() -> int:
        with inbox.expecting() as answer:
            answer.of(direct.send.remote(answer.address))
            return len([part async for part in answer.parts()])

    async def by_call(through: Any) -> int:
        return len([part async for part in through.options(stream=True).streamed.remote()])

    ways: dict[str, Callable[[], Awaitable[int]]] = {
        SOCKET: by_socket, DIRECT: lambda: by_call(direct), OBJECTS: lambda: by_call(handle)
    }  # fmt: skip
    processes = [psutil.Process(), psutil.Process(await handle.number.remote())]
    found: dict[tuple[int, str], list[float]] = {}
    for turn in range(turns + 1):  # the first one warms up
        for at_a_time in AT_A_TIME:
            for way in ways if turn % 2 else reversed(ways):
                before = spent(processes)
                await many(at_a_time, ways[way])
                if turn:
                    cpu = (spent(processes) - before) * 1e3 / (ANSWERS * PARTS)
                    found.setdefault((at_a_time, way), []).append(cpu)
    inbox.close()
    return found


def spent(processes: list[psutil.Process]) -> float:
    """CPU seconds so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    """Print a line for every way and number at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        handle = serve.run(cast(Any, Answers).bind(), route_prefix=None)
        found = asyncio.run(measured(handle, args.turns))
    finally:
        serve.shutdown()
        ray.shutdown()
    told = {}
    for (at_a_time, way), values in found.items():
        ratio = statistics.median(a / b for a, b in zip(values, found[at_a_time, SOCKET], strict=True))
        cpu = statistics.median(values)
        print(f"{at_a_time:3} at a time, {way:16} {cpu:.3f} ms of CPU a part; {ratio:.1f} times the socket's")
        told[f"{at_a_time} at a time, {way}"] = cpu
    print(json.dumps(told))


if __name__ == "__main__":
    main()
