"""The whole pipeline for a few steps on real BeaverTails rows: pairs from rows that share a prompt."""

import json
import subprocess
import sys

import pytest
import yaml

from castor.evaluation.summary import read_summary
from tests.conftest import ROOT, SHARED_DATA
from tests.numerics import TINY_MODELS, tolerance

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


def test_pipeline_on_real_rows_then_again(tmp_path):
    run_dir, config = tmp_path / "run", tmp_path / "real.yaml"
    config.write_text(yaml.safe_dump(real_config(run_dir)))
    first = castor("pipeline", str(config))
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
    second = castor("pipeline", str(config))
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("finished before, unchanged") == 6
    assert all(stage.reused for stage in read_summary(run_dir / "summary.json").stages.values())
