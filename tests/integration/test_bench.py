"""Sections of the bench that start a Ray of their own, with little work: they end, and find what they ask for."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300


def test_the_driver_with_workers_that_sample_nothing(tmp_path):
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.bench", "driver", "--smoke", "--out", str(file)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "8 workers: driver (CPU ms a prompt)" in json.dumps(json.loads(file.read_text()))
