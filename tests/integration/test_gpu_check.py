"""The parts of `make gpu-check`, on small shapes on the CPU."""

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu_check.parts import PARTS
from benchmarks.gpu_check.setting import Setting, close
from tests.conftest import ROOT

IN_PROCESS = [name for name, part in PARTS.items() if "vllm" not in part.needs]


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_part_finds_numbers(name, process_group):
    part = PARTS[name]
    rows = list(getattr(importlib.import_module(part.module), part.function)(Setting(torch.device("cpu"))))
    assert rows
    for _, figures in rows:
        assert figures
        assert all(math.isfinite(value) for value in figures.values() if not isinstance(value, str))


def test_the_command_writes_a_table_and_json_and_skips_by_name(tmp_path):
    (tmp_path / "absent").mkdir()
    out = tmp_path / "check.json"
    hide = "import sys; sys.modules['deepspeed'] = None; sys.modules['vllm'] = None\n"
    (tmp_path / "absent" / "sitecustomize.py").write_text(hide)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--out", str(out)]
    command += ["--only", "digest", "DeepSpeed"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path / "absent"), str(ROOT)))}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["parts"]["digest"]["state"] == "passed"
    assert report["parts"]["digest"]["rows"][0][1]["GiB/s"] > 0
    assert report["parts"]["DeepSpeed"] == {"state": "skipped", "why": "deepspeed not installed", "rows": []}
    assert "deepspeed not installed" in done.stdout


def test_the_parts_with_engines_find_numbers(tmp_path):
    halves = [["transfer", "in turns"], ["PPO-Lag"]]  # at the same time: each has one process that computes
    assert [name for half in halves for name in half] == [name for name in PARTS if name not in IN_PROCESS]
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu"]
    outs = [tmp_path / f"{number}.json" for number in range(len(halves))]
    processes = [
        subprocess.Popen([*command, "--out", str(out), "--only", *names], cwd=ROOT, stdout=subprocess.DEVNULL)
        for out, names in zip(outs, halves, strict=True)
    ]
    try:
        codes = [process.wait(1800) for process in processes]
    finally:
        for process in processes:
            process.terminate()
    parts = {name: part for out in outs for name, part in json.loads(out.read_text())["parts"].items()}
    assert codes == [0, 0], {name: part.get("stderr") for name, part in parts.items()}
    cases = {name: [case for case, _ in part["rows"]] for name, part in parts.items()}
    assert cases == {"transfer": ["host tiny", "ipc tiny"], "in turns": ["tiny"], "PPO-Lag": ["in turns"]}


def test_numbers_that_differ_are_an_error():
    with pytest.raises(RuntimeError, match=r"differ by 0\.1"):
        close(torch.tensor([1.1]), torch.tensor([1.0]), 0.05)
    with pytest.raises(RuntimeError, match="differ by nan"):
        close(torch.tensor([float("nan")]), torch.tensor([1.0]), 0.05)
