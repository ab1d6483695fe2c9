"""`castor runs`: what runs there are, and how far they have come; whether they are whole; going on; making room."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from castor.cli.failures import EXIT_FAILURE
from castor.io.errors import CastorError, first_line
from castor.io.files import local_path
from castor.run.files import DEFAULT_RUNS

if TYPE_CHECKING:
    from rich.table import Table

    from castor.run.survey import StageSurvey

app = typer.Typer(no_args_is_help=True, help="List, verify, resume and prune runs.")


def _local_folder(text: Path | str) -> Path:
    if "://" in str(text):
        raise CastorError(f"{text} is a URL, and runs at URLs are not supported yet: give a folder, e.g. runs/demo")
    return local_path(text)


Run = Annotated[Path, typer.Argument(parser=_local_folder, metavar="RUN", help="folder of a run, e.g. runs/demo")]


@app.command("list")
def list_runs(
    folder: Annotated[
        Path, typer.Argument(parser=_local_folder, metavar="[FOLDER]", help="the folder that runs are in")
    ] = DEFAULT_RUNS,
) -> None:
    """The runs in FOLDER: how far each has come, who is at work in it, and what its checkpoints take."""
    from castor.io.terminal import Terminal
    from castor.run.survey import runs_in

    runs, terminal = runs_in(folder), Terminal()
    if not runs:
        _say(terminal, f"there is no run in {folder}")
        return
    table, unread = _table("run", "stages", "at", "at work", "checkpoints", "last written"), dict[Path, str]()
    for run in runs:
        try:
            cells = _row(run)
        except (CastorError, OSError) as error:  # one run that cannot be read does not keep the others from being shown
            cells, unread[run] = ("", "cannot be read"), first_line(error)
        _add(table, run.name, *cells)
    terminal.line(table)
    for run, reason in unread.items():
        _say(terminal, f"{run} cannot be read: {reason}")


@app.command()
def show(run: Run) -> None:
    """The stages of RUN, the checkpoints of those that are not finished, and the command that goes on."""
    from castor.io.terminal import Terminal
    from castor.run.lock import at_work
    from castor.run.survey import plan_of_run, survey

    found, terminal = survey(plan_of_run(run)), Terminal()
    table = _table("stage", "state", "seconds")
    for each in found.stages:
        _add(table, each.stage.name, _state(each), f"{each.record.seconds:,.0f}" if each.record else "")
    terminal.line(table)
    stored = [(each, one) for each in found.stages if each.record is None for one in reversed(each.checkpoints)]
    if stored:
        table = _table("checkpoints of", "step", "size", "written", "")
        for each, one in stored:
            newest = "the newest" if one.step == each.newest else ""
            _add(table, each.stage.name, one.step, _size(one.size), _time(one.written), newest)
        terminal.line(table)
    process = at_work(found.files)
    if process is not None:
        _say(terminal, f"a castor (process {process}) is at work in it")
    elif found.at is None:
        _say(terminal, "every stage is finished")
    else:
        _say(terminal, f"to go on: castor runs resume {shlex.quote(str(run))}")


@app.command()
def verify(run: Run) -> None:
    """Whether the models, the checkpoints and the ledgers of RUN are what was written.

    Exit code 0 when they are, 1 when something is not.
    """
    from castor.io.terminal import Terminal
    from castor.run.lock import at_work
    from castor.run.survey import plan_of_run
    from castor.run.verify import verify

    plan, terminal = plan_of_run(run), Terminal()
    process = at_work(plan.files)
    if process is not None:
        _say(terminal, f"a castor (process {process}) is at work in it: what it replaces meanwhile is told as missing")
    count = wrong = 0
    for finding in verify(plan):
        count += 1
        wrong += finding.wrong is not None
        mark, told = ("[red]✗[/]", finding.wrong) if finding.wrong else ("[green]✓[/]", plan.files.shown(finding.what))
        _say(terminal, str(told), mark=mark)
    _say(terminal, f"{wrong} of {count} are not right" if wrong else f"all {count} are right")
    if wrong:
        raise typer.Exit(EXIT_FAILURE)


@app.command()
def resume(
    run: Run,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, as of castor pipeline")
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="go on from a checkpoint although what it was made from has changed"),
    ] = False,
) -> None:
    """Go on with RUN where it was cut short: castor pipeline with the config that is in it, wherever it lies now."""
    from castor.cli.carry_out import carry_out
    from castor.config.load import load_config
    from castor.run.survey import plan_of_run

    if any(override.startswith("run_dir=") for override in overrides or []):
        raise CastorError("a run is resumed in its own folder: leave run_dir out, or use castor pipeline")
    plan = plan_of_run(run)
    config = load_config(plan.files.config, overrides or []).model_copy(update={"run_dir": run})
    carry_out(config, lambda pipeline: pipeline.run(accept_changes=accept_changes))


@app.command()
def prune(
    run: Run,
    keep: Annotated[
        int, typer.Option("--keep", min=1, metavar="N", help="newest checkpoints to keep of a stage that goes on")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
) -> None:
    """Remove from RUN what nobody needs: older checkpoints, and what finished stages and killed processes left."""
    from castor.io.terminal import Terminal
    from castor.run.lock import exclusive
    from castor.run.prune import prune
    from castor.run.survey import plan_of_run

    plan, terminal = plan_of_run(run), Terminal()
    with exclusive(plan.files):
        pruned = prune(plan, keep, dry_run)
    would = "would be " if dry_run else ""
    for folder in pruned.back:
        _say(terminal, f"{plan.files.shown(folder)}  {would or 'is '}back in place: a process was killed replacing it")
    for each in pruned.removed:
        _say(terminal, f"{plan.files.shown(each.folder)}  {would}removed, {_size(each.size)}: {each.reason}")
    if pruned.removed:
        _say(terminal, f"{_size(sum(each.size for each in pruned.removed))} {would}free now")
    else:
        _say(terminal, "there is nothing to remove")


def _row(run: Path) -> tuple[str, ...]:
    """All cells of a run but its name. Raises CastorError for a run that cannot be read."""
    from castor.run.lock import at_work
    from castor.run.survey import plan_of_run, survey

    found = survey(plan_of_run(run))
    process = at_work(found.files)
    return (
        f"{found.finished} of {len(found.stages)}",
        "finished" if found.at is None else f"{found.at.stage.name}: {_state(found.at)}",
        f"process {process}" if process else "",
        _size(found.size) if found.size else "",
        _time(found.written),
    )


def _state(each: StageSurvey) -> str:
    if each.record is not None:
        return "finished"
    if each.newest is not None:
        steps = each.stage.steps
        return f"step {each.newest}" + (f" of {steps}" if steps else "")
    return "begun, no checkpoint" if each.begun else "not begun"


def _size(size: int) -> str:
    from rich.filesize import decimal

    return decimal(size)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "minutes") if seconds else ""


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        right = column in ("step", "seconds", "size", "checkpoints")
        table.add_column(column, justify="right" if right else "left", no_wrap="written" in column)
    return table


def _add(table: Table, *cells: Any) -> None:
    from rich.text import Text

    # Text, not str: names of folders may hold square brackets, which rich would take for markup.
    table.add_row(*(Text(str(cell), overflow="fold") for cell in cells))


def _say(terminal: Any, line: str, mark: str = "") -> None:
    from rich.text import Text

    terminal.line(Text.from_markup(f"{mark}  ").append(line) if mark else Text(line))
