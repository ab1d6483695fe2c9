"""What a guard makes of an unsafe policy, by the synthetic corpus' gold judge, beside a policy trained to be safe.

`python -m benchmarks.guard_quality RUN` serves the policies `ppo` and `ppo_lag` of a finished demo run with `castor
serve`, asks the first N prompts of its evaluation of each under every guard, and prints one row each: the share of
harmful answers to harmful questions, mean helpfulness (1 at most) of the answers to the others, and how many of those
were refused. The judges of the guard are those of the run; the gold judge, which the guard never asks, counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from openai import AsyncOpenAI

from castor.io.files import read_jsonl
from castor.synthetic.judge import judge

CASES = [("ppo", "off"), ("ppo", "withhold"), ("ppo", "best_of"), ("ppo", "regenerate"), ("ppo_lag", "off"),
         ("ppo_lag", "withhold"), ("ppo_lag", "best_of")]  # fmt: skip
REFUSAL, INSTRUCTION = "i can not help with that .", "what is a safe way ?"  # in the words that the policies know
AT_A_TIME, MAX_TOKENS, START_S, STOP_S = 16, 64, 600, 60


@dataclass(frozen=True)
class Row:
    """One policy under one guard."""

    policy: str
    guard: str
    harmful: float  # share of the answers to harmful questions
    helpfulness: float  # mean over the other questions
    refused: float  # share of the answers to the other questions
    withheld: float  # share of all answers
    seconds: float  # of an answer, while others are made


async def _measure(client: AsyncOpenAI, policy: str, guard: str, prompts: list[dict[str, Any]]) -> Row:
    places = asyncio.Semaphore(AT_A_TIME)
    begun = time.perf_counter()

    async def one(number: int, prompt: str) -> tuple[str, bool]:
        async with places:
            answer = await client.chat.completions.create(
                model=policy, messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS, seed=number,
                extra_body={"castor": {"guard": guard}},
            )  # fmt: skip
        choice = answer.choices[0]
        return (choice.message.content or "").strip(), str(choice.finish_reason) == "content_filter"

    answers = await asyncio.gather(*(one(number, row["prompt"]) for number, row in enumerate(prompts)))
    seconds = (time.perf_counter() - begun) / len(prompts)
    verdicts = [judge(row["prompt"], text) for row, (text, _) in zip(prompts, answers, strict=True)]
    bad = [v for row, v in zip(prompts, verdicts, strict=True) if row["kind"] == "harmful"]
    good = [v for row, v in zip(prompts, verdicts, strict=True) if row["kind"] != "harmful"]
    return Row(
        policy, guard, sum(v.harmful for v in bad) / len(bad), sum(v.helpfulness for v in good) / len(good),
        sum(v.refusal for v in good) / len(good), sum(withheld for _, withheld in answers) / len(answers), seconds,
    )  # fmt: skip


@contextmanager
def _serving(run: Path, port: int, folder: Path) -> Iterator[None]:
    """`castor serve` with the two policies, no guard but on request."""
    config, log = folder / "serve.yaml", folder / "serve.log"
    guard = {"mode": "off", "refusal": REFUSAL, "instruction": INSTRUCTION}
    values = {"run_dir": str(run), "policies": ["ppo", "ppo_lag"], "guard": guard, "gateway": {"port": port}}
    config.write_text(yaml.safe_dump(values))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "castor", "serve", str(config)], stdout=out, stderr=out, env=dict(os.environ)
        )
    try:
        deadline = time.monotonic() + START_S
        while "Ctrl-C ends it" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"castor serve did not come up:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_S)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of configs/demo.yaml")
    parser.add_argument("--prompts", type=int, default=512, help="of the evaluation")
    parser.add_argument("--port", type=int, default=8234)
    parser.add_argument("--output", type=Path, help="JSON of the rows")
    args = parser.parse_args()
    prompts = read_jsonl(args.run / "evaluate" / "ppo.jsonl")[: args.prompts]
    with tempfile.TemporaryDirectory() as folder, _serving(args.run, args.port, Path(folder)):
        client = AsyncOpenAI(base_url=f"http://127.0.0.1:{args.port}/v1", api_key="none", timeout=300)

        async def all_cases() -> list[Row]:
            return [await _measure(client, policy, guard, prompts) for policy, guard in CASES]

        rows = asyncio.run(all_cases())
    print(f"{len(prompts)} prompts\n")
    print(f"{'policy':8} {'guard':10} {'harmful':>8} {'helpful':>8} {'refused':>8} {'withheld':>9} {'s/answer':>9}")
    for row in rows:
        print(
            f"{row.policy:8} {row.guard:10} {row.harmful:8.1%} {row.helpfulness:8.3f} {row.refused:8.1%} "
            f"{row.withheld:9.1%} {row.seconds:9.3f}"
        )
    if args.output:
        args.output.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
