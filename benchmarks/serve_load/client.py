"""The client: streamed chats in closed and open loop, and what each of them took."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import numpy as np
import psutil

from benchmarks.serve_load.servers import Server

REQUEST_S = 600
PROMPT_TOKENS = 32
PROBES = 40


@dataclass
class Answer:
    """When the parts of a streamed answer came, in seconds after the request."""

    texts: list[float]
    end: float
    tokens: int


class Client:
    """Asks one server the same questions as every other."""

    def __init__(self, prompts: list[str], max_tokens: int) -> None:
        self.prompts, self.max_tokens = prompts, max_tokens

    def body(self, server: Server, number: int, mode: str | None) -> dict[str, Any]:
        """Of one request. With a mode of the guard, fields that only vLLM knows are left out."""
        body = {
            "model": server.model, "messages": [{"role": "user", "content": self.prompts[number % len(self.prompts)]}],
            "max_tokens": self.max_tokens, "temperature": 1.0, "seed": number, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        return body | ({"ignore_eos": True} if mode is None else {"castor": {"guard": mode}})

    async def ask(self, session: aiohttp.ClientSession, server: Server, number: int, mode: str | None) -> Answer:
        """One answer. Raises RuntimeError for anything but a whole one."""
        begun, texts, tokens, rest, done = time.perf_counter(), list[float](), 0, b"", False
        async with session.post(f"{server.url}/v1/chat/completions", json=self.body(server, number, mode)) as response:
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {(await response.text())[:500]}")
            async for part in response.content.iter_any():
                now = time.perf_counter() - begun
                *events, rest = (rest + part).split(b"\n\n")
                for event in events:
                    data = event.removeprefix(b"data: ")
                    if data == b"[DONE]":
                        done = True
                        continue
                    values = json.loads(data)
                    if "error" in values:
                        raise RuntimeError(str(values["error"])[:500])
                    if any(choice["delta"].get("content") for choice in values["choices"]):
                        texts.append(now)
                    tokens = (values.get("usage") or {}).get("completion_tokens", tokens)
        if not done or not texts:
            raise RuntimeError("the answer broke off, or had no text")
        return Answer(texts, time.perf_counter() - begun, tokens)

    def closed(self, server: Server, concurrency: int, count: int, mode: str | None = None) -> dict[str, Any]:
        """`count` requests, so many at a time."""

        async def drive(session: aiohttp.ClientSession) -> list[Answer]:
            numbers = iter(range(count))

            async def worker() -> list[Answer]:
                return [await self.ask(session, server, number, mode) for number in numbers]

            found = await asyncio.gather(*(worker() for _ in range(concurrency)))
            return [answer for each in found for answer in each]

        return {"load": f"{concurrency} at a time"} | self._measured(server, drive)

    def open(self, server: Server, rate: float, count: int) -> dict[str, Any]:
        """`count` requests that come at random, `rate` a second, whether or not others have been answered."""
        arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, count))

        async def drive(session: aiohttp.ClientSession) -> list[Answer]:
            begun = time.perf_counter()

            async def one(number: int) -> Answer:
                await asyncio.sleep(max(begun + arrivals[number] - time.perf_counter(), 0))
                return await self.ask(session, server, number, None)

            return list(await asyncio.gather(*(one(number) for number in range(count))))

        return {"rate": rate} | self._measured(server, drive)

    def _measured(self, server: Server, drive: Any) -> dict[str, Any]:
        async def run() -> tuple[list[Answer], float, dict[str, float], float, float]:
            timeout = aiohttp.ClientTimeout(total=REQUEST_S)
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
                before, own, all_, begun = server.cpu(), time.process_time(), _busy(), time.perf_counter()
                answers = await drive(session)
                wall = time.perf_counter() - begun
                own, all_ = time.process_time() - own, _busy() - all_
                spent = {role: max(s - before.get(role, 0.0), 0.0) for role, s in server.cpu().items()}
                return answers, wall, spent, own, all_

        answers, wall, spent, own, everything = asyncio.run(run())
        tokens = sum(answer.tokens for answer in answers)
        gaps = np.concatenate([np.diff(answer.texts) for answer in answers if len(answer.texts) > 1] or [np.zeros(1)])
        return {
            "requests": len(answers), "wall_s": wall, "requests_per_s": len(answers) / wall,
            "tokens_per_s": tokens / wall,
            "ttft_ms": _percentiles([answer.texts[0] for answer in answers]),
            "inter_token_ms": _percentiles(
                [(a.texts[-1] - a.texts[0]) / max(a.tokens - 1, 1) for a in answers]
            ),
            "gap_ms": _percentiles(gaps),
            "total_ms": _percentiles([answer.end for answer in answers]),
            "tokens_per_event": tokens / sum(len(answer.texts) for answer in answers),
            "cpu_ms_per_token": {role: 1000 * s / tokens for role, s in spent.items() if s},
            "client_cores": own / wall, "other_cores": max(everything - own - sum(spent.values()), 0) / wall,
        }  # fmt: skip

    def path(self, server: Server, longest: int) -> dict[str, float]:
        """Medians, ms, of requests that end early: at the first app, and at vLLM's app, which refuses the prompt."""
        body = self.body(server, 0, None)
        body["messages"] = [{"role": "user", "content": (self.prompts[0] + " ") * (longest // PROMPT_TOKENS + 1)}]
        health, refused = list[float](), list[float]()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for _ in range(PROBES):
                begun = time.perf_counter()
                assert client.get(server.health).status_code == 200
                middle = time.perf_counter()
                assert client.post("/v1/chat/completions", json=body).status_code == 400
                health.append(1000 * (middle - begun))
                refused.append(1000 * (time.perf_counter() - middle))
        return {"health_ms": statistics.median(health), "refused_ms": statistics.median(refused)}


def _busy() -> float:
    """CPU seconds that the machine has spent on anything."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _percentiles(seconds: Any) -> dict[str, float]:
    values = np.percentile(np.asarray(seconds) * 1000, (50, 95, 99))
    return {f"p{p}": float(value) for p, value in zip((50, 95, 99), values, strict=True)}
