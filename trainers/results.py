"""Where the stages leave what the summary is made of. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from castor.io.files import read_json


def responses_file(run_dir: Path, policy: str) -> Path:
    """Where the judged responses of a policy are kept."""
    return run_dir / "evaluate" / f"{policy}.jsonl"


def run_file(run_dir: Path, name: str) -> Path:
    """Where the RLHF run `name` keeps its limits, nodes and steps."""
    return run_dir / name / "run.json"


def read_run(run_dir: Path, name: str) -> dict[str, Any]:
    """What the RLHF run `name` noted: thresholds, limits, nodes (of each group's first actor) and steps."""
    return read_json(run_file(run_dir, name))
