"""What the way into Ray Serve costs a streamed answer: an own listener, as the gateway has, beside Ray Serve's own.

`python -m benchmarks.ways_in [--turns 3]`. The same ASGI application, a stream of parts with pauses between them, is
reached at a socket that its replica listens at itself (`serve/gateway/listener.py` does so), through Ray Serve's proxy,
at the socket of its direct ingress, and through HAProxy. Each way has a Ray of its own, since Ray Serve reads such
settings at import, and all take turns. Told are the milliseconds to the first part, the streams a second and the CPU
milliseconds a stream of Ray and all of its processes, medians of the turns, and the ratio of these to the own
listener's of the same turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import httpx
import psutil
import ray
import uvicorn
from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

PARTS, PAUSE_S = 32, 0.002  # of a stream
PORT, OWN_PORT, DIRECT_PORT = 8765, 8766, 8770
OWN, PROXY, DIRECT, HAPROXY = "own listener", "Ray Serve's proxy", "direct ingress", "HAProxy"
WAYS = {  # environment of each
    OWN: {},
    PROXY: {},
    DIRECT: {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(DIRECT_PORT)},
    HAPROXY: {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
}
AT_A_TIME = (1, 16)
STREAMS = 200  # of a turn
UP_S = 60.0
UNITS = ("first part, ms", "streams/s", "CPU ms a stream")


async def parts(_: Request) -> Response:
    """A stream."""

    async def made() -> AsyncIterator[bytes]:
        for number in range(PARTS):
            await asyncio.sleep(PAUSE_S)
            yield f"data: {number}\n\n".encode()

    return StreamingResponse(made(), media_type="text/event-stream")


app = Starlette(routes=[Route("/", parts)])


@serve.deployment(max_ongoing_requests=1000)
@serve.ingress(app)
class Streams:
    """The application in a replica."""

    def __init__(self) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=OWN_PORT, log_level="warning", access_log=False)
        self.listening = asyncio.get_running_loop().create_task(uvicorn.Server(config).serve())


def serving(way: str) -> None:
    """Serve one way: in a process of its own, until its input ends. Prints a line once it is up."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(cast(Any, Streams).bind())
    print(f"http://127.0.0.1:{ {OWN: OWN_PORT, DIRECT: DIRECT_PORT}.get(way, PORT) }/", flush=True)
    sys.stdin.read()


async def driven(url: str, at_a_time: int, streams: int) -> tuple[list[float], float]:
    """Seconds to the first part of each of `streams` streams, and of all together."""
    first: list[float] = []
    left = iter(range(streams))

    async def one_after_the_other(client: httpx.AsyncClient) -> None:
        for _ in left:
            begin = time.perf_counter()
            async with client.stream("GET", url) as response:
                response.raise_for_status()
                lines = [line async for line in noting(response, begin)]
            if len(lines) != PARTS:
                raise RuntimeError(f"{len(lines)} parts of {PARTS} came through {url}")

    async def noting(response: httpx.Response, begin: float) -> AsyncIterator[str]:
        fresh = True
        async for line in response.aiter_lines():
            if line and fresh:
                first.append(time.perf_counter() - begin)
                fresh = False
            if line:
                yield line

    async with httpx.AsyncClient(timeout=UP_S) as client:
        await until_up(lambda: client.get(url))
        begin = time.perf_counter()
        await asyncio.gather(*(one_after_the_other(client) for _ in range(at_a_time)))
        return first, time.perf_counter() - begin


async def until_up(ask: Callable[[], Awaitable[httpx.Response]]) -> None:
    """Raises TimeoutError when nothing answers well within a minute."""
    end = time.monotonic() + UP_S
    while time.monotonic() < end:
        try:
            if (await ask()).is_success:
                return
        except httpx.TransportError:
            pass  # nobody listens yet
        await asyncio.sleep(0.2)
    raise TimeoutError(f"no answer within {UP_S:.0f} s")


def cpu_s(server: psutil.Process) -> float:
    """CPU seconds so far of the server and of all that it has started and that lives."""
    spent = 0.0
    for process in (server, *server.children(recursive=True)):
        try:
            times = process.cpu_times()
            spent += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return spent


def turn(way: str) -> dict[int, tuple[float, float, float]]:
    """By number at a time: median ms to the first part, streams a second, CPU ms a stream."""
    command, found = [sys.executable, "-m", "benchmarks.ways_in", "--serve", way], {}
    server = subprocess.Popen(
        command, env=os.environ | WAYS[way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        url = next((line.strip() for line in server.stdout if line.startswith("http")), None)
        if url is None:
            raise RuntimeError(f"{way}: Ray Serve did not start")
        asyncio.run(driven(url, 4, 20))
        for count in AT_A_TIME:
            spent = cpu_s(psutil.Process(server.pid))
            first, seconds = asyncio.run(driven(url, count, STREAMS))
            cpu = cpu_s(psutil.Process(server.pid)) - spent
            found[count] = (statistics.median(first) * 1e3, STREAMS / seconds, cpu / STREAMS * 1e3)
    finally:
        server.communicate(timeout=UP_S)  # its input ends
    return found


def main() -> None:
    """Print a line for every way and number at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--serve", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serving(args.serve)
        return
    found: dict[str, list[dict[int, tuple[float, float, float]]]] = {way: [] for way in args.ways}
    for number in range(args.turns):
        for way in args.ways if number % 2 == 0 else reversed(args.ways):
            found[way].append(turn(way))
    told: dict[str, Any] = {}
    for count in AT_A_TIME:
        for way, turns in found.items():
            medians = [statistics.median(each[count][i] for each in turns) for i in range(len(UNITS))]
            line = ", ".join(f"{value:.2f} {unit}" for value, unit in zip(medians, UNITS, strict=True))
            ratios = [each[count][2] / own[count][2] for each, own in zip(turns, found.get(OWN, turns), strict=True)]
            print(f"{count:3} at a time, {way:18} {line}; CPU {statistics.median(ratios):.2f} of the own listener's")
            told[f"{count} at a time, {way}"] = dict(zip(UNITS, medians, strict=True))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
