"""`castor runs` on URLs: the copies of checkpoints that runs with `checkpoint.url` leave there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from castor.cli.telling import add_row, say, size_of, table_of
from castor.io.errors import CastorError

if TYPE_CHECKING:
    from castor.run.copies import CopiedStage, Copies


def list_copies(url: str) -> None:
    """Say of which runs there are copies below a URL."""
    from castor.io.terminal import Terminal
    from castor.run.copies import Copies

    stages, terminal = Copies(url).stages(), Terminal()
    if not stages:
        say(terminal, f"there is no copy of a run at {url}")
        return
    table = table_of("run", "stage", "at", "checkpoints")
    for each in stages:
        at = "" if each.newest is None else f"step {each.newest}"
        add_row(table, each.run, each.stage, at, size_of(sum(copy.size for copy in each.copies)))
    terminal.line(table)


def show_copies(url: str) -> None:
    """Say which copies there are of a run, and how to go on from them."""
    from castor.io.terminal import Terminal

    _, run, stages = _of_a_run(url)
    terminal, table = Terminal(), table_of("checkpoints of", "step", "size", "")
    for stage in stages:
        for copy in reversed(stage.copies):
            note = "the newest" if copy.step == stage.newest else "" if copy.complete else "not copied to the end"
            add_row(table, stage.stage, copy.step, size_of(copy.size), note)
    terminal.line(table)
    say(terminal, f"to go on where there is no folder of {run}: castor runs resume {url}")


def verify_copies(url: str) -> int:
    """Read all copies of a run, say of each whether it is what was written, and return how many are not."""
    from castor.io.terminal import Terminal

    copies, _, stages = _of_a_run(url)
    terminal, count, wrong = Terminal(), 0, 0
    for stage in stages:
        for copy in stage.copies:
            name, mark = f"{stage.stage}, step {copy.step}", "[green]✓[/]"
            try:
                copies.verify(stage, copy)
            except CastorError as error:
                name, mark, wrong = f"{name}: {error}", "[red]✗[/]", wrong + 1
            say(terminal, name, mark=mark)
            count += 1
    say(terminal, f"{wrong} of {count} are not right" if wrong else f"all {count} are right")
    return wrong


def prune_copies(url: str, keep: int, dry_run: bool) -> None:
    """Remove all copies of a run but the newest `keep` of each stage."""
    from castor.io.terminal import Terminal

    copies, _, stages = _of_a_run(url)
    terminal, would, size = Terminal(), "would be " if dry_run else "", 0
    for stage in stages:
        for copy in copies.superfluous(stage, keep):
            if not dry_run:
                copies.remove(stage, copy)
            say(terminal, f"{stage.stage}, step {copy.step}  {would}removed, {size_of(copy.size)}")
            size += copy.size
    say(terminal, f"{size_of(size)} {would}free now" if size else "there is nothing to remove")


def fetch_config(url: str, folder: Path) -> Path:
    """Put the config of a run in its folder, where the run then goes on; returns its path.

    Raises CastorError where there is a run already.
    """
    from castor.io.files import write_text
    from castor.run.files import RunFiles

    copies, run, _ = _of_a_run(url)
    files = RunFiles(folder)
    if files.is_run:
        raise CastorError(f"there is a run at {folder} already: use castor runs resume {folder}")
    write_text(files.config, copies.config(run))
    return files.config


def name_of(url: str) -> str:
    """Of the run, its last part."""
    return url.rstrip("/").rpartition("/")[2]


def _of_a_run(url: str) -> tuple[Copies, str, list[CopiedStage]]:
    """The place, the name and the stages of a run. Raises CastorError where there is no copy of one."""
    from castor.run.copies import Copies

    run = name_of(url)
    copies = Copies(url.rstrip("/").removesuffix(f"/{run}"))
    stages = copies.stages(run)
    if not stages:
        raise CastorError(f"there is no copy of a run at {url}: castor runs list tells of those below a URL")
    return copies, run, stages
