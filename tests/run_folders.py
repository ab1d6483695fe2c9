"""Folders of runs, made by hand: as a pipeline leaves them, without models, Ray or a minute of training."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from castor.config.load import dump_config, load_config
from castor.data.tokens.prompt_stream import Prompt, PromptStream
from castor.io.checkpoint import atomic_folder, mark_files
from castor.io.files import write_json, write_jsonl, write_text
from castor.run.checkpoints import Checkpoint, Checkpoints
from castor.run.ledger import Entry, Terms
from castor.run.plan import Plan, make_plan
from castor.run.records import Records
from tests.conftest import ROOT

STEPS = 4
TERMS = Terms(prompts=6, prompts_per_step=2, samples_per_prompt=2, max_staleness=0)
OVERRIDES = [
    f"rlhf.{name}.{option}"
    for name in ("ppo", "ppo_lag")
    for option in (f"steps={STEPS}", "prompts_per_step=2", "samples_per_prompt=2", "checkpoint.keep_every=null")
]
BEFORE_RLHF = ("model", "sft", "collect", "reward", "cost")


def make_run(run_dir: Path, finished: Sequence[str] = BEFORE_RLHF, overrides: Sequence[str] = ()) -> Plan:
    """The demo's run with these stages finished; an RLHF stage among them has its ledger."""
    config = load_config(ROOT / "configs" / "demo.yaml", [*OVERRIDES, *overrides])
    plan = make_plan(config.model_copy(update={"run_dir": run_dir}))
    write_text(plan.files.config, dump_config(plan.config))
    for name in finished:
        stage, files = plan.stage(name), plan.files.stage(name)
        with Records(plan.files).recorded(name, "key"):
            if stage.makes_model:
                with atomic_folder(plan.model_folder(name)) as aside:
                    (aside / "config.json").write_text("{}")
            if stage.field == "rlhf":
                write_jsonl(files.ledger, [entry.to_json() for entry in ledger(STEPS)])
                write_json(files.run_record, {"ledger": asdict(TERMS)})
    return plan


def ledger(steps: int, terms: Terms = TERMS, seed: int = 0) -> list[Entry]:
    """What a run without faults writes; versions as old as they may be."""
    stream = PromptStream([Prompt(str(n), None) for n in range(terms.prompts)], terms.prompts_per_step, seed)
    entries = []
    for step in range(1, steps + 1):
        oldest = max(0, step - 1 - terms.max_staleness)
        numbers = [number for number, _ in stream.next_batch()]
        responses = [(n, s, oldest, step - 1) for n in numbers for s in range(terms.samples_per_prompt)]
        entries.append(Entry(step, tuple(responses)))
    return entries


def add_checkpoint(plan: Plan, stage: str, step: int, entries: Sequence[Entry] | None = None) -> Checkpoint:
    """Put a checkpoint of a stage in place as its newest one; an RLHF stage's holds its ledger."""
    checkpoints = Checkpoints(plan.files.stage(stage).training)
    staged = checkpoints.stage(step)
    (staged.aside / "weights").write_bytes(bytes(1000))
    if plan.stage(stage).field == "rlhf":
        made = Checkpoint(staged.aside, step)
        made.write_record(stage=stage, key="key", terms=asdict(TERMS))
        write_jsonl(made.ledger, [entry.to_json() for entry in (ledger(step) if entries is None else entries)])
    marks = mark_files(staged.aside, sorted(staged.aside.iterdir()))
    return checkpoints.commit(staged, step, marks, keep=9, every=None)
