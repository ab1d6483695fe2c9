"""Whether what a run keeps is what was written: models and checkpoints by their hashes, RLHF by its ledgers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor.io.checkpoint import verify_folder
from castor.io.errors import CastorError
from castor.io.files import read_json, read_jsonl
from castor.run.checkpoints import Checkpoint, Checkpoints
from castor.run.files import StageFiles
from castor.run.ledger import Entry, Terms, check_ledger
from castor.run.plan import Plan
from castor.run.records import Records
from castor.run.stages.stage import Stage


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what is wrong with it, as a sentence; None: nothing is."""

    what: Path
    wrong: str | None


def verify(plan: Plan) -> Iterator[Finding]:
    """Every finished model, every checkpoint and every ledger of a run, one after the other: hashing takes its time."""
    records = Records(plan.files)
    for name, stage in plan.stages.items():
        files = plan.files.stage(name)
        if records.of(name) is not None:
            yield from _finished(stage, files)
        yield from _to_go_on_from(stage, files)
        for path in files.kept_checkpoints():
            yield from _checkpoint(stage, Checkpoint.at(path), f"remove {path}")


def _finished(stage: Stage, files: StageFiles) -> Iterator[Finding]:
    if stage.makes_model:
        model = stage.model_folder(files)
        yield _found(model, lambda: verify_folder(model))
        adapter = files.adapter(model)
        if adapter.is_dir():
            yield _found(adapter, lambda: verify_folder(adapter))
    if stage.field == "rlhf":
        yield _found(
            files.ledger, lambda: _ledger(files.ledger, files.run_record, "ledger", stage.name, stage.section.steps)
        )


def _to_go_on_from(stage: Stage, files: StageFiles) -> Iterator[Finding]:
    checkpoints = Checkpoints(files.training)
    newest = _found(files.training.newest, checkpoints.newest)
    if newest.wrong is not None:
        yield newest
    for each in checkpoints.all():
        yield from _checkpoint(stage, each, f"remove {each.folder}, and {files.training.newest} if it names it")


def _checkpoint(stage: Stage, checkpoint: Checkpoint, remedy: str) -> Iterator[Finding]:
    yield _found(checkpoint.folder, lambda: verify_folder(checkpoint.folder, remedy))
    if stage.field == "rlhf":
        ledger, step = checkpoint.ledger, checkpoint.step
        yield _found(ledger, lambda: _ledger(ledger, checkpoint.record, "terms", stage.name, step))


def _ledger(ledger: Path, record: Path, terms: str, stage: str, steps: int) -> None:
    """Raise CastorError unless the ledger holds against the terms that stand in a record, and has so many steps."""
    terms_read, lines = _read(record, lambda path: read_json(path)[terms]), _read(ledger, read_jsonl)
    try:
        found = check_ledger([Entry.from_json(values) for values in lines], Terms.from_json(terms_read))
    except CastorError as error:
        raise CastorError(f"{ledger}: {error}") from None
    if found != steps:
        raise CastorError(f"{ledger} has {found} steps, and {stage} took {steps}")


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except FileNotFoundError:
        raise CastorError(f"there is no {path}") from None
    except (ValueError, LookupError, TypeError):
        raise CastorError(f"{path} is damaged, or was written by another Castor") from None


def _found(what: Path, look: Callable[[], object]) -> Finding:
    try:
        look()
    except CastorError as error:
        return Finding(what, str(error))
    return Finding(what, None)
