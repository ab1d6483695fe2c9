"""Loads on both servers by turns, and the modes of the guard."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

import httpx

from benchmarks.serve_load.client import Client
from benchmarks.serve_load.servers import Server

WINDOWS = (20, 40, 100)
MODES = ("off", "annotate", "withhold", "best_of", "regenerate")


def scraped(server: Server) -> dict[str, float]:
    """Sums and counts of the gateway's histograms, over all labels."""
    found: dict[str, float] = {}
    for name, value in re.findall(
        r"^(castor_\w+_(?:sum|count))(?:\{.*\})? (\S+)$", httpx.get(f"{server.url}/metrics").text, re.M
    ):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def mean_since(before: dict[str, float], after: dict[str, float], name: str) -> float:
    """Mean of a histogram's observations between two scrapes, ms; NaN when there was none."""
    count = after.get(f"{name}_count", 0) - before.get(f"{name}_count", 0)
    return 1000 * (after[f"{name}_sum"] - before.get(f"{name}_sum", 0)) / count if count else float("nan")


def pair(bare: Server, castor: Server, client: Client, args: argparse.Namespace, longest: int) -> dict[str, Any]:
    """Every load on both servers, by turns: of each turn what bare vLLM did, and Castor, seconds apart."""
    for server in (bare, castor):
        client.closed(server, 8, 16)  # warm-up
    loads = {f"{c} at a time": (lambda s, c=c: client.closed(s, c, _count(args, c))) for c in args.concurrency}
    if args.shares:
        most = client.closed(bare, args.concurrency[-1], _count(args, args.concurrency[-1]))["requests_per_s"]
        rates = {f"{share:.0%} of bare": share * most for share in args.shares}
        loads |= {name: (lambda s, r=r: client.open(s, r, args.requests // 2)) for name, r in rates.items()}
    found: dict[str, Any] = {"loads": {name: [] for name in loads}, "path": []}
    for number in range(args.turns):
        order = (bare, castor) if number % 2 else (castor, bare)
        for name, load in loads.items():
            before = scraped(castor)
            turn = {"bare" if server is bare else "castor": load(server) for server in order}
            turn["castor"]["gateway_first_ms"] = mean_since(before, scraped(castor), "castor_first_text_seconds")
            found["loads"][name].append(turn)
        paths = {"bare" if server is bare else "castor": client.path(server, longest) for server in order}
        found["path"].append(paths)
    return found


def _count(args: argparse.Namespace, concurrency: int) -> int:
    return int(min(args.requests, 3 * concurrency + 5))


def guard_prices(server: Server, client: Client, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every mode at the middle window, and `withhold` at every window, each beside guard off, at middle concurrency."""
    concurrency = args.concurrency[len(args.concurrency) // 2]
    cases = [(mode, WINDOWS[1]) for mode in MODES] + [("withhold", w) for w in WINDOWS if w != WINDOWS[1]]
    for mode, window in cases:
        at = Server(server.url, f"window-{window}", server.process, server.health)
        count = _count(args, concurrency)
        client.closed(at, concurrency, concurrency, mode)  # warm-up
        off = client.closed(at, concurrency, count, "off")
        before = scraped(server)
        load = client.closed(at, concurrency, count, mode)
        after = scraped(server)
        questions = after.get("castor_judge_seconds_count", 0) - before.get("castor_judge_seconds_count", 0)
        yield load | {
            "mode": mode, "window": window, "off": off, "judgements_per_request": questions / count,
            "judge_ms": mean_since(before, after, "castor_judge_seconds"),
        }  # fmt: skip
