"""Serving: `castor serve` with its guard off beside vLLM's own server, as `benchmarks.serve_load` drives the two.

Both have the same model, engine arguments, environment and threads, and the one that is not asked rests. Streamed chats
in a closed loop, so many at a time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench.measurement import Ratio, Section
from benchmarks.bench.random_models import llama
from benchmarks.serve_load.client import PROMPT_TOKENS, Client
from benchmarks.serve_load.measures import pair
from benchmarks.serve_load.servers import bare_server, castor_server, make_run
from castor.config.demo_model import DemoModel
from castor.config.serve import Serve
from castor.data.tokens.template import load_tokenizer
from serve.targets import resolve

MODELS = {"0.1B": (llama(768, 12, 8192, 512), 0.9), "1M": (llama(128, 4, 1024, 512), 0.8)}  # and what is wanted
LATER_MS = 10.0  # than bare vLLM's may the first token come at most
BOUNDED_BY = "a request's way through Ray Serve, and each event's through the gateway's process, on the engine's cores"


def turns_of(size: DemoModel, load: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Of each load its turns: what bare vLLM did, and Castor."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_run(folder / "run", size)
        values = {"run_dir": str(folder / "run"), "engine": {"kv_cache_mib": 512}, "guard": {"mode": "off"}}
        config = Serve.model_validate(values)
        target = resolve(config).policies[0]
        tokenizer, rng = load_tokenizer(target.model), np.random.default_rng(0)
        ids = rng.integers(8, len(tokenizer), (load.requests, PROMPT_TOKENS))
        client = Client([str(tokenizer.decode(row.tolist(), skip_special_tokens=True)) for row in ids], load.max_tokens)
        with (
            bare_server(config, target, folder) as bare,
            castor_server(values, target.name, {}, folder, "castor") as server,
        ):
            loads: dict[str, list[dict[str, Any]]] = pair(bare, server, client, load, target.max_model_len)["loads"]
            return loads


def ratios_of(
    model: str, at_least: float, loads: Mapping[str, Sequence[dict[str, Any]]]
) -> tuple[list[Ratio], dict[str, float]]:
    """Of every load: tokens per second over bare vLLM's, and by how much later the median first token came."""
    ratios, figures = list[Ratio](), dict[str, float]()
    for name, turns in loads.items():
        rates = tuple(turn["castor"]["tokens_per_s"] / turn["bare"]["tokens_per_s"] for turn in turns)
        later = tuple(turn["castor"]["ttft_ms"]["p50"] - turn["bare"]["ttft_ms"]["p50"] for turn in turns)
        where = f"{model}, {name}"
        ratios.append(Ratio(f"{where}: tokens/s, castor serve / bare vLLM", rates, at_least, bounded_by=BOUNDED_BY))
        ratios.append(Ratio(f"{where}: first token later, ms", later, at_most=LATER_MS, bounded_by=BOUNDED_BY))
        for server in ("castor", "bare"):
            figures[f"{where}: {server}, tokens/s"] = statistics.median(t[server]["tokens_per_s"] for t in turns)
            figures[f"{where}: {server}, first token, ms"] = statistics.median(
                t[server]["ttft_ms"]["p50"] for t in turns
            )
    return ratios, figures


def measure(smoke: bool) -> Section:
    """Ratios of both models; the small one alone for a smoke test."""
    load = argparse.Namespace(requests=24, concurrency=[1, 16], shares=[], max_tokens=24, turns=3)
    if smoke:
        load = argparse.Namespace(requests=8, concurrency=[2], shares=[], max_tokens=8, turns=1)
    ratios, figures = list[Ratio](), dict[str, float]()
    for name, (size, at_least) in MODELS.items():
        if smoke and name != "1M":
            continue
        found, more = ratios_of(name, at_least, turns_of(size, load))
        ratios += found
        figures |= more
    return Section("serve", tuple(ratios), figures)
