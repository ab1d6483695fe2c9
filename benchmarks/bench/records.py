"""What the bench found, as JSON, and as a page of Markdown made of it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench.measurement import Ratio, Section
from castor.io.files import read_json, write_json, write_text

ROOT = Path(__file__).parents[2]
VERSIONS = ("torch", "vllm", "ray", "deepspeed", "transformers")


def machine() -> dict[str, Any]:
    """This machine, what is installed on it, and which Castor runs there."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS}},
        "commit": _commit(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str:
    for distribution in (name, f"{name}-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return found.stdout.strip() + (" and changes" if changed.strip() else "") if found.returncode == 0 else "unknown"


def to_record(section: Section, seconds: float, smoke: bool, load: float) -> dict[str, Any]:
    """A section as JSON, with when and where it was measured.

    `seconds` is how long that took, `load` how many processes wanted a core before it began: of a machine that was busy
    with other things, the numbers say little.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_before": round(load, 1),
        "seconds": round(seconds, 1),
        "smoke": smoke,
        "ratios": [
            {
                "name": ratio.name,
                "values": list(ratio.values),
                "median": ratio.median,
                "at_least": ratio.at_least,
                "at_most": ratio.at_most,
                "holds": ratio.holds,
                "bounded_by": ratio.bounded_by,
            }
            for ratio in section.ratios
        ],
        "figures": section.figures,
    }


def merge(file: Path, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put the sections that were measured in the place of those of their names, keep the others; writes `file` and the
    page beside it, and returns all sections.
    """
    before = read_json(file) if file.is_file() else {}
    sections = dict(sorted({**before, **measured}.items()))
    write_json(file, sections)
    write_text(file.with_suffix(".md"), page(sections))
    return sections


def page(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a table of all ratios, the figures of each section, and where they were measured."""
    lines = [
        "# Bench",
        "",
        "`make bench` measures this anew; `python -m benchmarks.bench SECTION` one section alone. Ratios are of work",
        "done in turns on the same cores: median, and from the smallest to the largest repetition.",
        "",
        "| section | ratio | median | spread | wanted | holds | bounded by |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(name, ratio) for name, section in sections.items() for ratio in section["ratios"]]
    for name, section in sections.items():
        if section["figures"]:
            lines += ["", f"## {name}", "", "| figure | value |", "|---|---|"]
            lines += [f"| {_cell(figure)} | {value:.4g} |" for figure, value in section["figures"].items()]
    lines += [
        "",
        "## Where and when",
        "",
        "| section | date | took | load before | machine | versions | commit |",
        "|" + "---|" * 7,
    ]
    lines += [_place(name, section) for name, section in sections.items()]
    return "\n".join([*lines, ""])


def _row(section: str, ratio: Mapping[str, Any]) -> str:
    values = ratio["values"]
    wanted = [f"{sign} {ratio[key]:g}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if ratio[key] is not None]
    holds = {True: "yes", False: "**no**", None: ""}[ratio["holds"]]
    spread = f"{min(values):.3g} to {max(values):.3g}"
    cells = [section, ratio["name"], f"{statistics.median(values):.3g}", spread, ", ".join(wanted), holds]
    return f"| {' | '.join(map(_cell, [*cells, ratio['bounded_by']]))} |"


def _place(name: str, section: Mapping[str, Any]) -> str:
    at = section["machine"]
    where = f"{at['processor']}, {at['cores']} cores, {at['memory_gib']} GiB"
    versions = ", ".join(f"{package} {version}" for package, version in at["versions"].items())
    took = f"{section['seconds']:.0f} s" + (" (smoke)" if section["smoke"] else "")
    load = f"{section['load_before']:g}"
    return f"| {' | '.join(map(_cell, [name, section['date'], took, load, where, versions, at['commit']]))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def told(section: Section) -> str:
    """The ratios and figures of one section, for the terminal."""
    lines = [f"{section.name}: {_told(ratio)}" for ratio in section.ratios]
    return "\n".join([*lines, *(f"{section.name}: {name} {value:.4g}" for name, value in section.figures.items())])


def _told(ratio: Ratio) -> str:
    holds = {True: "  holds", False: "  DOES NOT HOLD", None: ""}[ratio.holds]
    return f"{ratio.name} {ratio.median:.3g} ({min(ratio.values):.3g} to {max(ratio.values):.3g}){holds}"
