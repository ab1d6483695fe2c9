"""A cluster of two nodes on this machine, with Ray's token authentication: a job aligns a policy."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.integration.small import SMALL

RAY = Path(sys.executable).with_name("ray")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def run(command, env, timeout=300):
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def two_nodes(tmp_path):
    """A head that offers CPUs, and a second node that offers the custom resource `rollout`."""
    gcs, dashboard, client, agent = free_ports(4)
    home = tmp_path / "home"
    home.mkdir()
    token = home / "token"
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "HOME": str(home),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),  # what vLLM and others keep
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",
        "PYTHONUNBUFFERED": "1",
    }
    token.write_text("a-token-of-this-test-only-0123456789abcdef")
    # Ray's socket paths must stay short; a folder per node, or the nodes unpack the working directory into one another
    temps = [Path("/tmp") / f"castor-{os.getpid()}-{node}" for node in ("head", "second")]
    start = [RAY, "start", "--num-cpus=3", "--object-store-memory=300000000", "--disable-usage-stats"]
    head = [
        "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", "--node-ip-address=127.0.0.1",
        f"--temp-dir={temps[0]}",
    ]  # fmt: skip
    run([*start, *head], env)
    second = ["--address=127.0.0.1:" + str(gcs), '--resources={"rollout": 4}', "--node-ip-address=127.0.0.1"]
    second_agent, second_grpc = free_ports(2)
    second += [f"--dashboard-agent-listen-port={second_agent}", f"--dashboard-agent-grpc-port={second_grpc}"]
    second += [f"--temp-dir={temps[1]}"]
    run([*start, *second], env)
    yield env | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    ours = [
        p for p in psutil.process_iter(["cmdline"]) if f"castor-{os.getpid()}-" in " ".join(p.info["cmdline"] or [])
    ]
    for process in ours:
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(ours, timeout=3)
    for process in alive:
        process.kill()


def test_a_submitted_job_aligns_a_policy_with_its_rollout_workers_on_the_second_node(two_nodes, tiny_models, tmp_path):
    run_dir = tmp_path / "run"
    settings = [setting for setting in SMALL if setting.startswith(("wandb", "rlhf.ppo_lag"))]
    settings += [f"run_dir={run_dir}", "rlhf.ppo_lag.rollout.resources.custom={rollout: 1}"]
    settings += [f"{stage}=null" for stage in ("model", "sft", "collect", "reward", "cost", "rlhf.ppo", "evaluate")]
    settings += [f"rlhf.ppo_lag.policy.model={tiny_models.policy}"]
    settings += [f"rlhf.ppo_lag.signals.helpfulness.model={tiny_models.reward}"]
    settings += [f"rlhf.ppo_lag.signals.harm.model={tiny_models.cost}"]
    submit = [RAY, "job", "submit", "--working-dir", "."]
    submit += ["--runtime-env-json", '{"excludes": [".venv", "runs", ".git"]}']
    job = [sys.executable, "-m", "castor", "pipeline", "configs/demo.yaml", *settings]
    output = run([*submit, "--", *job], two_nodes, timeout=900)
    assert "succeeded" in output
    lag = json.loads((run_dir / "ppo_lag" / "run.json").read_text())
    assert len(lag["steps"]) == 3
    prices = [step["multipliers"]["harm"] for step in lag["steps"]]
    assert prices[0] == pytest.approx(1.0)  # the delay of one step
    assert prices[2] != prices[1]
    assert lag["nodes"]["rollout"] != lag["nodes"]["learner"]
