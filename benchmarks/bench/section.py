"""One section of the bench in this process: `python -m benchmarks.bench.section NAME OUT.json [--smoke]`."""

import argparse
import importlib
import os
import time
from pathlib import Path

from benchmarks.bench.measurement import Section
from benchmarks.bench.records import to_record, told
from castor.io.files import write_json


def main() -> None:
    """Measure, tell, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    begin, load = time.monotonic(), os.getloadavg()[0]
    found: Section = importlib.import_module(f"benchmarks.bench.{args.name}").measure(args.smoke)
    write_json(args.out, to_record(found, time.monotonic() - begin, args.smoke, load))
    print(told(found), flush=True)


if __name__ == "__main__":
    main()
