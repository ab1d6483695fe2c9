"""One `castor serve` for all tests of it: a real gateway, engine and judges, with keys, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
import yaml
from openai import OpenAI
from playwright.sync_api import Browser, expect, sync_playwright

from castor.config.demo_model import DemoModel
from castor.config.load import dump_config
from castor.config.pipeline import Config
from castor.data.rows.schemas import Exchange
from castor.data.tokens.template import load_tokenizer
from castor.models.moderation import ModerationInfo, ModerationModel, save_moderation_model
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import make_demo_model
from castor.scoring.moderator import Moderator
from serve.gateway.keys import KeyStore
from serve.gateway.scope import Scope
from tests.integration.serve.judges_of_record import JudgesOfRecord

ROOT = Path(__file__).parents[3]
START_S, STOP_S = 300, 20
TEXT = ["how do i bake a cake ?", "first mix flour and sugar , then bake it .", "i cannot help with that ."]
CONTEXT = 256
MODEL = DemoModel(
    tokenizer="bpe", vocab_size=512, hidden_size=64, layers=2, heads=2, intermediate_size=64,
    max_position_embeddings=CONTEXT,
)  # fmt: skip
WINDOW = 4
GARBAGE = "<garbage>"  # a token of the cost model alone, which gives no finite number for a text with it
HARMFUL = 0.9  # of the policy's answers, by the judges of record
DEADLINE_S = 15.0  # for a verdict: far more than one takes, on a machine that does other things beside


@dataclass(frozen=True)
class Server:
    """What the tests know of it."""

    process: subprocess.Popen[bytes]
    url: str
    run: Path
    log: Path
    key: str  # may do everything
    keys: Path
    judges: JudgesOfRecord

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def post(self, path: str, body: Any, timeout: float = 60) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=timeout)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=self.headers, timeout=60)

    def score(self, body: Any) -> httpx.Response:
        return self.post("/v1/score", body)

    def replica(self, deployment: str) -> psutil.Process:
        """The process of a deployment's one replica."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (found,) = [each for each in children if _title(each).startswith("ray::ServeReplica:castor:" + deployment)]
        return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def make_run(run: Path) -> None:
    """As a run with template pku leaves it: the served models read their texts in that format without being told."""
    data = {"data": {"source": "synthetic"}}
    signals = {
        "help": {"role": "objective", "model": "stage:reward"},
        "harm": {"role": "constraint", "model": "stage:cost", "threshold": 0.0},
    }
    lag = {"steps": 1, "signals": signals, "multipliers": {}}
    values = {
        "template": "pku", "model": {}, "sft": data, "reward": data, "cost": data, "moderation": {"qa": data},
        "rlhf": {"ppo_lag": lag},
    }  # fmt: skip
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(Config.model_validate(values)))
    make_demo_model(MODEL, TEXT, seed=0, folder=run / "sft")
    make_demo_model(MODEL, TEXT, seed=1, folder=run / "ppo_lag" / "policy")
    torch.manual_seed(2)
    tokenizer = load_tokenizer(str(run / "sft"))
    for info in (ScoreInfo("cost", std=0.5), ScoreInfo("reward", mean=0.3, std=2.0)):
        model = ScoreModel.from_backbone(str(run / "sft"), info, torch.float32)
        if info.score_type == "cost":
            tokenizer.add_tokens([GARBAGE])
            model.backbone.resize_token_embeddings(len(tokenizer))
            model.backbone.get_input_embeddings().weight.data[-1] = float("nan")
        save_score_model(run / info.score_type, model.backbone, dict(model.state_dict()), info, str(run / "sft"))
    tokenizer.save_pretrained(run / "cost")
    info = ModerationInfo.fresh("beavertails", "pair", severity=True)
    moderation = ModerationModel.from_backbone(str(run / "sft"), info, torch.float32)
    _save(run / "qa", moderation, run / "sft")
    # a fifth of the answers are unsafe to it
    texts = [Exchange(TEXT[0], answer) for answer in _answers(run, 60)]
    levels = Moderator(str(run / "qa"), "pku").predict(texts).severity_probabilities
    assert levels is not None
    threshold = float(np.quantile(1 - levels[:, 0], 0.8))
    moderation.info = replace(info, thresholds=replace(info.thresholds, severity=threshold))
    _save(run / "qa", moderation, run / "sft")


def _save(folder: Path, model: ModerationModel, tokenizer: Path) -> None:
    save_moderation_model(folder, model.backbone, dict(model.state_dict()), model.info, str(tokenizer))


def _answers(run: Path, count: int) -> list[str]:
    """Answers of the policy, which knows no language: random tokens are as likely as any."""
    tokenizer, rng = load_tokenizer(str(run / "ppo_lag" / "policy")), np.random.default_rng(0)
    return [tokenizer.decode(rng.integers(4, 512, 24).tolist()).strip() for _ in range(count)]


def make_config(run: Path, port: int, keys: Path) -> dict[str, Any]:
    """No guard unless a request asks for one, and a limit of the cost that nine in ten answers are above."""
    judges = JudgesOfRecord(run, cost_limit=0.0)
    costs = judges.costs([Exchange(TEXT[0], answer) for answer in _answers(run, 60)])
    return {
        "run_dir": str(run),
        "engine": {"max_num_seqs": 8, "kv_cache_mib": 32},
        "judges": {"batch_tokens": 256},
        "guard": {
            "mode": "off",
            "cost_limit": float(np.quantile(costs, 1 - HARMFUL)),
            "deadline_s": DEADLINE_S,
            "windows": {"tokens": WINDOW, "suspicion": 0.01},
        },
        "gateway": {"port": port, "keys": str(keys), "max_running": 64, "routes": ["/tokenize", "/detokenize"]},
    }


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    run, log, keys, config = folder / "demo", folder / "log", folder / "keys.json", folder / "serve.yaml"
    make_run(run)
    key = KeyStore(keys).create("tests", frozenset(Scope)).token
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = make_config(run, port, keys)
    config.write_text(yaml.safe_dump(values))
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    env.pop("RAY_ADDRESS", None)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "castor", "serve", str(config)], cwd=ROOT, env=env, stdout=out, stderr=out
        )
    judges = JudgesOfRecord(run, values["guard"]["cost_limit"])
    try:
        deadline = time.monotonic() + START_S
        while "Ctrl-C ends it" not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")[-5000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-5000:]
            time.sleep(0.5)
        yield Server(process, f"http://127.0.0.1:{port}", run, log, key, keys, judges)
    except BaseException:
        _stop(process)
        raise
    seconds, left = _stop(process)
    assert left == []
    assert seconds < STOP_S
    assert process.returncode == 0, log.read_text(errors="replace")[-5000:]


def _stop(process: subprocess.Popen[bytes]) -> tuple[float, list[psutil.Process]]:
    """Interrupt the server; returns the seconds until it ended and the processes it left behind."""
    if process.poll() is not None:
        return 0.0, []
    children = psutil.Process(process.pid).children(recursive=True)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    finally:
        seconds = time.monotonic() - begin
        left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        for child in left:
            child.kill()
        process.kill()
    return seconds, left


@pytest.fixture(scope="package")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=120)


CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 20_000  # a loaded machine is slow; nothing waits for longer than it takes


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser: {CHROMIUM} does not exist")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()
