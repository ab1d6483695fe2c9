"""`make bench`: what Castor's parts cost against the same work done without them, section by section.

`python -m benchmarks.bench [SECTION ...] [--smoke] [--out FILE.json]`. Each section is measured in a process of its
own, which leaves no Ray, no threads and no caches to the next one. A section that fails is told of, and the others go
on; the exit status is then 1. Without --out, results go to benchmarks/results.json and results.md, of a smoke test
nowhere.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench.records import ROOT, merge
from castor.io.files import read_json

HERE = Path(__file__).parent
RESULTS = ROOT / "benchmarks" / "results.json"
TIMEOUT_S = 900.0  # of one section


def sections() -> list[str]:
    """The modules of this package with a `measure`."""
    return sorted(path.stem for path in HERE.glob("*.py") if "\ndef measure(" in path.read_text(encoding="utf-8"))


def measured(name: str, smoke: bool) -> dict[str, Any] | None:
    """The record of a section that was measured in a process of its own; None: it failed, and has said why."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        command = [sys.executable, "-m", "benchmarks.bench.section", name, str(out), *(["--smoke"] if smoke else [])]
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            status: int | str = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = f"no end after {TIMEOUT_S:.0f} s"
        finally:
            if process.poll() is None:  # out of time, or interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status or not out.is_file():
            print(f"{name}: FAILED ({status}); the reason stands above", file=sys.stderr, flush=True)
            return None
        record: dict[str, Any] = read_json(out)
        return record


def main() -> int:
    """Measure; returns the exit status."""
    known = sections()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--smoke", action="store_true", help="little work, to see that it works")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    unknown = sorted(set(args.sections) - set(known))
    if unknown:
        parser.error(f"no section {unknown[0]!r}: choose from {', '.join(known)}")
    out = args.out or (None if args.smoke else RESULTS)
    begin, failed = time.monotonic(), []
    for name in args.sections or known:
        record = measured(name, args.smoke)
        if record is None:
            failed.append(name)
        elif out is not None:
            merge(out, {name: record})
    print(f"{time.monotonic() - begin:.0f} s" + (f"; results: {out.with_suffix('.md')}" if out else ""))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
