"""See `benchmarks.serve_load`."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks.serve_load
from benchmarks.serve_load.client import PROMPT_TOKENS, Client
from benchmarks.serve_load.measures import WINDOWS, guard_prices, pair
from benchmarks.serve_load.servers import NotStarted, bare_server, castor_server, make_run
from benchmarks.serve_load.tables import show_guard, show_loads, show_path
from castor.config.demo_model import DemoModel
from castor.config.serve import Serve
from castor.data.tokens.template import load_tokenizer
from serve.targets import read_head_categories, resolve

DEADLINE_S = 120.0  # for a verdict: on a busy machine one that comes late is still to be timed
SAFE = 1e9  # a limit of the cost that nothing is above


def _variant(text: str) -> tuple[str, dict[str, str]]:
    name, _, rest = text.partition("=")
    return name, dict(pair.split("=", 1) for pair in rest.split(","))


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=benchmarks.serve_load.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a finished run; default: one that is made")
    parser.add_argument("--requests", type=int, default=96, help="of a load, at most")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25, 0.5], help="of bare's most requests/s")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3, help="pairs of a load")
    parser.add_argument("--variant", type=_variant, action="append", default=[], metavar="NAME=KEY=VALUE[,...]")
    parser.add_argument("--size", type=int, nargs=2, default=[384, 12], metavar=("WIDTH", "LAYERS"))
    parser.add_argument("--no-guard", action="store_true", help="leave the modes of the guard out")
    parser.add_argument("--output", type=Path, default=Path("serve_load.json"))
    return parser.parse_args()


def main() -> None:
    """Print the tables, write the JSON."""
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = args.run or folder / "run"
        if args.run is None:
            width, layers = args.size
            make_run(run, DemoModel(
                tokenizer="word", vocab_size=8192, hidden_size=width, layers=layers, heads=max(width // 64, 1),
                intermediate_size=8 * width // 3 // 8 * 8, max_position_embeddings=512,
            ))  # fmt: skip
        values = {"run_dir": str(run.absolute()), "engine": {"kv_cache_mib": 1024}, "guard": {"mode": "off"}}
        config = Serve.model_validate(values)
        targets = resolve(config)
        target = targets.policies[0]
        tokenizer, rng = load_tokenizer(target.model), np.random.default_rng(0)
        ids = rng.integers(8, len(tokenizer), (args.requests, PROMPT_TOKENS))
        client = Client([str(tokenizer.decode(row.tolist(), skip_special_tokens=True)) for row in ids], args.max_tokens)
        report: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg(), "pairs": {}}
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; {args.max_tokens} tokens a request")
        with bare_server(config, target, folder) as bare:
            for name, env in [("castor", {}), *args.variant]:
                try:
                    with castor_server(values, target.name, env, folder, name) as server:
                        report["pairs"][name] = pair(bare, server, client, args, target.max_model_len)
                        print(f"\n{name}: ready after {server.ready_s:.0f} s, bare vLLM after {bare.ready_s:.0f}")
                except NotStarted as error:  # a setting under which nothing starts is a finding as well
                    if name == "castor":
                        raise
                    print(f"{name}: {error}", flush=True)
                    continue
                args.output.write_text(json.dumps(report, indent=1))
                show_loads({name: report["pairs"][name]})
                show_path({name: report["pairs"][name]})
                print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
        if not args.no_guard and targets.judges:
            model = f"stage:{target.name}"
            judge = targets.judges.get("moderation")
            never = {} if judge is None else dict.fromkeys(read_head_categories(judge.model), 1.0)
            guards = {
                f"window-{w}": {
                    "model": model,
                    "guard": {
                        "mode": "off",
                        "deadline_s": DEADLINE_S,
                        "cost_limit": SAFE,
                        "categories": never,
                        "windows": {"tokens": w},
                    },
                }
                for w in WINDOWS
            }
            with castor_server(values | {"policies": guards}, "window-40", {}, folder, "guard") as server:
                report["guard"] = []
                for price in guard_prices(server, client, args):
                    report["guard"].append(price)
                    args.output.write_text(json.dumps(report, indent=1))
            show_guard(report["guard"])
        args.output.write_text(json.dumps(report | {"load_after": os.getloadavg()}, indent=1))


if __name__ == "__main__":
    main()
