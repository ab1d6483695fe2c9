"""Run the parts, one process each, and write what they found."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_check.parts import PARTS, Part

Rows = list[tuple[str, dict[str, float | str]]]
STDERR = 20_000  # characters of what a failed part said; an engine's own error comes long before its parent's
PART_TIMEOUT_S = {"cuda": 300, "cpu": 900}  # a machine for tests has few cores, and much else to do


def main() -> None:
    """Exit code 1: a part failed."""
    arguments = _arguments()
    if arguments.part:
        _run_here(PARTS[arguments.part], arguments.device, arguments.out)
        return
    chosen = [name for name in PARTS if not arguments.only or name in arguments.only]
    results: dict[str, dict[str, Any]] = {}
    report = {"machine": machine(arguments.device), "parts": results}
    for name in chosen:
        results[name] = _run_apart(name, arguments.device)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"{name} {results[name]['state']}", file=sys.stderr)
    _print(report)
    sys.exit(any(result["state"] == "failed" for result in results.values()))


def machine(device: str) -> dict[str, str]:
    """The card, its driver, and the versions of what is installed."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "deepspeed", "vllm", "ray"):
        if importlib.util.find_spec(name):
            found[name] = importlib.import_module("importlib.metadata").version(_distribution(name))
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "memory": f"{properties.total_memory / (1 << 30):.1f} GiB"}
        found["CUDA"] = str(torch.version.cuda)
    return found


def _distribution(module: str) -> str:
    return importlib.import_module("importlib.metadata").packages_distributions()[module][0]


def _run_here(part: Part, device: str, out: Path) -> None:
    import torch

    from benchmarks.gpu_check.setting import Setting

    faulthandler.dump_traceback_later(PART_TIMEOUT_S[device] - 10)
    run: Callable[[Any], Iterator[tuple[str, dict[str, float | str]]]]
    run = getattr(importlib.import_module(part.module), part.function)
    rows: Rows = []
    for row in run(Setting(torch.device(device, 0) if device == "cuda" else torch.device("cpu"))):
        rows.append(row)
        out.write_text(json.dumps(rows), encoding="utf-8")  # what was found before a failure is kept


def _run_apart(name: str, device: str) -> dict[str, Any]:
    """The result of one part, from a process of its own."""
    missing = [package for package in PARTS[name].needs if importlib.util.find_spec(package) is None]
    if missing:
        return {"state": "skipped", "why": f"{', '.join(missing)} not installed", "rows": []}
    start, timeout_s = time.monotonic(), PART_TIMEOUT_S[device]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, "--device", device, "--out", str(out)]
        environment = os.environ | PARTS[name].environment(device)
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
            )
            code, said = done.returncode, done.stderr
        except subprocess.TimeoutExpired as error:
            code, said = -1, f"{_text(error.stderr)}\nnot done after {timeout_s} s"
        rows: Rows = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    result: dict[str, Any] = {"state": "failed" if code else "passed", "rows": rows}
    result["seconds"] = round(time.monotonic() - start, 1)
    return result | ({"why": said.strip().rpartition("\n")[2], "stderr": said[-STDERR:]} if code else {})


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _print(report: dict[str, Any]) -> None:
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    table = Table("part", "case", "found")
    for name, result in report["parts"].items():
        seconds = f", {result['seconds']:.0f} s" if "seconds" in result else ""
        table.add_row(name, f"{result['state']}{seconds}", result.get("why", ""))
        for case, figures in result["rows"]:
            table.add_row("", case, ", ".join(f"{figure} {_number(value)}" for figure, value in figures.items()))
    console.print(table)


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _arguments() -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: small shapes, to test the parts"
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts and no others")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="where the figures are written")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch sees no GPU here: install the CUDA stack (make install-gpu) and a driver it can use, or give "
            "--device cpu"
        )
    return arguments


if __name__ == "__main__":
    main()
