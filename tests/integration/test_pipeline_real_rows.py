"""The whole pipeline for a few steps on real BeaverTails rows, from a model that ships its own code; then served."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
import yaml

from castor.config.data import DataSource
from castor.config.demo_model import DemoModel
from castor.config.load import load_config
from castor.data.rows.load import stream_demonstrations
from castor.data.sources.report import RowReport
from castor.evaluation.summary import read_summary
from castor.models.tiny import make_demo_model
from castor.run.plan import make_plan
from castor.run.records import Records
from tests.conftest import ROOT, SHARED_DATA
from tests.numerics import TINY_MODELS, tolerance
from tests.own_code import write_own_code_model

ROWS = SHARED_DATA / "beavertails" / "beavertails-30k-test-part.jsonl.gz"
EVALUATION = SHARED_DATA / "beavertails-evaluation" / "BeaverTails-Evaluation.json"
pytestmark = pytest.mark.skipif(not ROWS.is_file(), reason="the real rows are not on this machine")


def castor(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "castor", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )


def real_config(run_dir, base):
    source = {"source": str(ROWS)}
    # the longer response stands in for the more helpful one: these rows have no helpfulness label
    pairs = source | {"helpfulness": "longer"}
    engine = {"micro_batch_tokens": 1024, "optimizer": {"lr": 1.0e-3}}
    rollout = {"max_prompt_tokens": 80, "max_new_tokens": 16, "chunk_size": 4, "max_num_seqs": 16, "kv_cache_mib": 64}
    small = {"max_steps": 3, "batch_size": 4, "max_length": 160, "engine": engine, "validation_share": 0.2}
    return {
        "run_dir": str(run_dir),
        "wandb": {"mode": "disabled"},
        "sft": {"model": {"source": str(base), "trust_remote_code": True}, "data": source | {"limit": 300}, **small},
        "reward": {"data": pairs, **small},
        "cost": {"data": source, **small},
        "rlhf": {
            "ppo_lag": {
                "steps": 2,
                "prompts": source | {"limit": 40},
                "prompts_per_step": 6,
                "signals": {
                    "helpfulness": {"role": "objective", "model": "stage:reward"},
                    "harm": {"role": "constraint", "model": "stage:cost", "threshold": -0.5},
                },
                "multipliers": {"lambda_init": 1.0},
                "rollout": rollout,
                "learner": {
                    "engine": engine,
                    "ptx": {"data": source | {"limit": 100}, "batch_size": 4, "ptx_coeff": 0.5},
                },
            }
        },
        "evaluate": {
            "prompts": {"source": str(EVALUATION), "limit": 12},
            "rollout": rollout,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model with code of its own, whose tokenizer knows these rows."""
    folder = tmp_path_factory.mktemp("base")
    rows = list(stream_demonstrations(DataSource(source=str(ROWS), limit=500), RowReport()))
    small = DemoModel(
        tokenizer="bpe", vocab_size=800, hidden_size=64, intermediate_size=96, heads=2, max_position_embeddings=192
    )
    make_demo_model(small, (text for row in rows for text in (row.prompt, row.response)), 0, folder / "llama")
    return write_own_code_model(folder / "own", folder / "llama")


def test_code_that_is_not_trusted_is_refused_in_one_sentence(base, tmp_path):
    config = real_config(tmp_path / "run", base)
    config["sft"]["model"] = str(base)
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(config))
    refused = castor("pipeline", str(tmp_path / "real.yaml"))
    assert refused.returncode == 2, refused.stdout + refused.stderr
    told = refused.stdout + refused.stderr
    assert f"{base} ships code of its own" in told
    assert f"model: {{source: {base}, trust_remote_code: true}}" in told


def test_pipeline_on_real_rows_then_again_then_served(base, tmp_path):
    run_dir, config = tmp_path / "run", tmp_path / "real.yaml"
    config.write_text(yaml.safe_dump(real_config(run_dir, base)))
    first = castor("pipeline", str(config), "--profile-torch", "learner,reward")
    assert first.returncode == 0, first.stdout + first.stderr + (run_dir / "logs" / "castor.log").read_text()[-4000:]
    summary = read_summary(run_dir / "summary.json")
    assert list(summary.policies) == ["sft", "ppo_lag"]
    # a prompt over max_prompt_tokens is dropped, counted and listed, not cut
    long = (run_dir / "evaluate.long_prompts.jsonl").read_text().splitlines()
    assert summary.policies["sft"].n + len(long) == 12
    assert all(json.loads(line)["tokens"] > 80 for line in long)
    assert summary.policies["sft"].gold_harmful_rate is None  # nobody knows the truth about real text
    steps = [json.loads(line) for line in (run_dir / "ppo_lag" / "steps.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    assert all(step["metrics"]["ptx_loss"] > 0 for step in steps)
    assert all(step["metrics"]["logprob_gap_mean"] < tolerance(6.0, TINY_MODELS) for step in steps)
    assert (run_dir / "report.html").stat().st_size > 10_000
    for folder in ("sft", "reward", "cost", "ppo_lag/policy"):  # each can be loaded again, with trust
        assert (run_dir / folder / "modeling_own.py").is_file(), folder
    check_profiles(make_plan(load_config(config)), first.stdout)
    second = castor("pipeline", str(config))
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("finished before, unchanged") == 5
    with serving(run_dir) as ask:
        # while the server starts
        exported = castor(
            "export", str(run_dir / "reward"), str(tmp_path / "out"), "--as", "castor", "--trust-remote-code"
        )
        assert exported.returncode == 0, exported.stdout + exported.stderr
        assert (tmp_path / "out" / "modeling_own.py").is_file()
        answer, score = ask()
    assert answer["choices"][0]["message"]["content"] is not None
    assert score["scores"][0]["reward"] is not None


def check_profiles(plan, told):
    """Every actor of every stage has a row with its start; calls nest, and those of a step say of which."""
    records = Records(plan.files)
    for name, stage in plan.stages.items():
        folder = plan.files.stage(name).profile
        assert f"open {plan.files.shown(folder)}/timeline.json in https://ui.perfetto.dev" in told
        events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
        rows = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
        actors = [each for each in stage.actors() if each.name not in ("fit", "TrainController", "ProgressBoard")]
        assert set(rows) == {"driver", *(rank for each in actors for rank in each.rank_names)}
        spans = {
            row: [event for event in events if event["pid"] == pid and event["ph"] == "X"] for row, pid in rows.items()
        }
        for row, found in spans.items():
            assert {"process", "imports"} <= {event["name"] for event in found} or row == "driver"
            assert_nested(found)
        startup = records.of(name).startup
        assert set(startup["actors"]) == {each.name for each in actors}
        assert startup["seconds"].keys() >= {"data", "actors"}
        if stage.field == "rlhf":
            steps = [1, 2]
            assert [event["args"]["step"] for event in spans["driver"] if event["name"] == "step"] == steps
            for row, method in (
                ("learner-0", "step"),
                ("signal-harm-0", "advantages"),
                ("MultiplierOwner-0", "update"),
            ):
                calls = [
                    event["args"].get("step", event["args"].get("version"))
                    for event in spans[row]
                    if event["name"] == method
                ]
                assert calls == steps, row
            for row, method in (("signal-harm-0", "score"), ("reference-0", "logprobs"), ("rollout-0", "generate")):
                assert {event["args"]["step"] for event in spans[row] if event["name"] == method} == {1, 2}, row
    for trace in ("ppo_lag.profile/learner-0", "reward.profile/RayTrainWorker-0"):
        with gzip.open(plan.files.folder / f"{trace}.torch.json.gz") as file:
            assert any(event["name"].startswith("aten::") for event in json.load(file)["traceEvents"])


def assert_nested(spans):
    """Of one thread, two are apart or one is within the other."""
    for thread in {event["tid"] for event in spans}:
        ends = []
        mine = [event for event in spans if event["tid"] == thread]
        for event in sorted(mine, key=lambda event: (event["ts"], -event["dur"])):
            while ends and ends[-1] <= event["ts"]:
                ends.pop()
            assert not ends or event["ts"] + event["dur"] <= ends[-1], event
            ends.append(event["ts"] + event["dur"])


@contextmanager
def serving(run_dir):
    """A function that says what `castor serve` answers to a chat and to a score request, once it is up.

    It is told nothing about the run but its folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "castor", "serve", str(run_dir), f"gateway.port={port}", "engine.kv_cache_mib=32"]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)

    def ask():
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if "Ctrl-C" in line:
                break
        else:
            pytest.fail(f"castor serve ended: {told} {(run_dir / 'logs' / 'serve.log').read_text()[-3000:]}")
        url = f"http://127.0.0.1:{port}/v1"
        messages = [{"role": "user", "content": "hello"}]
        chat = {"model": "ppo_lag", "messages": messages, "max_tokens": 4}
        answer = httpx.post(f"{url}/chat/completions", json=chat, timeout=120)
        score = httpx.post(f"{url}/score", json={"prompt": "hello", "response": "no"}, timeout=120)
        assert (answer.status_code, score.status_code) == (200, 200), answer.text + score.text
        return answer.json(), score.json()

    try:
        yield ask
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
