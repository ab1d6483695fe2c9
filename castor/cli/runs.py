"""`castor runs`: what runs there are, and how far they have come; whether they are whole; going on; making room."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castor.cli.copies import fetch_config, list_copies, name_of, prune_copies, show_copies, verify_copies
from castor.cli.failures import EXIT_FAILURE
from castor.cli.telling import add_row, say, size_of, table_of, time_of
from castor.io.errors import CastorError, first_line
from castor.io.files import local_path
from castor.run.files import DEFAULT_RUNS

if TYPE_CHECKING:
    from castor.run.survey import StageSurvey

app = typer.Typer(no_args_is_help=True, help="List, verify, resume and prune runs.")


@dataclass(frozen=True)
class Place:
    """Where runs are: in a folder of this machine, or as copies at a URL."""

    text: str

    @property
    def url(self) -> str | None:
        """None: it is a folder."""
        return self.text if "://" in self.text else None

    @property
    def folder(self) -> Path:
        """Raises CastorError for the home folder of somebody unknown."""
        return local_path(self.text)


def _place(value: Place | str) -> Place:
    return value if isinstance(value, Place) else Place(value)  # defaults are parsed, too


Run = Annotated[
    Place,
    typer.Argument(
        parser=_place, metavar="RUN", help="folder of a run, e.g. runs/demo, or the URL of its copies, s3://BUCKET/demo"
    ),
]


@app.command("list")
def list_runs(
    place: Annotated[
        Place,
        typer.Argument(parser=_place, metavar="[FOLDER]", help="the folder that runs are in, or a checkpoint.url"),
    ] = Place(str(DEFAULT_RUNS)),
) -> None:
    """The runs in FOLDER: how far each has come, who is at work in it, and what its checkpoints take."""
    if place.url is not None:
        list_copies(place.url)
        return
    from castor.io.terminal import Terminal
    from castor.run.survey import runs_in

    folder = place.folder
    runs, terminal = runs_in(folder), Terminal()
    if not runs:
        say(terminal, f"there is no run in {folder}")
        return
    table, unread = table_of("run", "stages", "at", "at work", "checkpoints", "last written"), dict[Path, str]()
    for run in runs:
        try:
            cells = _row(run)
        except (CastorError, OSError) as error:  # one run that cannot be read does not keep the others from being shown
            cells, unread[run] = ("", "cannot be read"), first_line(error)
        add_row(table, run.name, *cells)
    terminal.line(table)
    for run, reason in unread.items():
        say(terminal, f"{run} cannot be read: {reason}")


@app.command()
def show(run: Run) -> None:
    """The stages of RUN, the checkpoints of those that are not finished, and the command that goes on."""
    if run.url is not None:
        show_copies(run.url)
        return
    from castor.io.terminal import Terminal
    from castor.run.lock import at_work
    from castor.run.survey import plan_of_run, survey

    found, terminal = survey(plan_of_run(run.folder)), Terminal()
    table = table_of("stage", "state", "seconds")
    for each in found.stages:
        add_row(table, each.stage.name, _state(each), f"{each.record.seconds:,.0f}" if each.record else "")
    terminal.line(table)
    stored = [(each, one) for each in found.stages if each.record is None for one in reversed(each.checkpoints)]
    if stored:
        table = table_of("checkpoints of", "step", "size", "written", "")
        for each, one in stored:
            newest = "the newest" if one.step == each.newest else ""
            add_row(table, each.stage.name, one.step, size_of(one.size), time_of(one.written), newest)
        terminal.line(table)
    process = at_work(found.files)
    if process is not None:
        say(terminal, f"a castor (process {process}) is at work in it")
    elif found.at is None:
        say(terminal, "every stage is finished")
    else:
        say(terminal, f"to go on: castor runs resume {shlex.quote(run.text)}")


@app.command()
def verify(run: Run) -> None:
    """Whether the models, the checkpoints and the ledgers of RUN are what was written.

    Exit code 0 when they are, 1 when something is not.
    """
    if run.url is not None:
        if verify_copies(run.url):
            raise typer.Exit(EXIT_FAILURE)
        return
    from castor.io.terminal import Terminal
    from castor.run.lock import at_work
    from castor.run.survey import plan_of_run
    from castor.run.verify import verify

    plan, terminal = plan_of_run(run.folder), Terminal()
    process = at_work(plan.files)
    if process is not None:
        say(terminal, f"a castor (process {process}) is at work in it: what it replaces meanwhile is told as missing")
    count = wrong = 0
    for finding in verify(plan):
        count += 1
        wrong += finding.wrong is not None
        mark, told = ("[red]✗[/]", finding.wrong) if finding.wrong else ("[green]✓[/]", plan.files.shown(finding.what))
        say(terminal, str(told), mark=mark)
    say(terminal, f"{wrong} of {count} are not right" if wrong else f"all {count} are right")
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
    """Go on with RUN where it was cut short: castor pipeline with the config that is in it, wherever it lies now.

    From a URL it goes on in runs/, in a folder of its own: what has no copy is made again, and RLHF goes on from its.
    """
    from castor.cli.carry_out import carry_out
    from castor.config.load import load_config
    from castor.run.survey import plan_of_run

    if any(override.startswith("run_dir=") for override in overrides or []):
        raise CastorError("a run is resumed in its own folder: leave run_dir out, or use castor pipeline")
    if run.url is not None:
        folder = DEFAULT_RUNS / name_of(run.url)
        path = fetch_config(run.url, folder)
    else:
        folder = run.folder
        path = plan_of_run(folder).files.config
    config = load_config(path, overrides or []).model_copy(update={"run_dir": folder})
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
    if run.url is not None:
        prune_copies(run.url, keep, dry_run)
        return
    from castor.io.terminal import Terminal
    from castor.run.lock import exclusive
    from castor.run.prune import prune
    from castor.run.survey import plan_of_run

    plan, terminal = plan_of_run(run.folder), Terminal()
    with exclusive(plan.files):
        pruned = prune(plan, keep, dry_run)
    would = "would be " if dry_run else ""
    for folder in pruned.back:
        say(terminal, f"{plan.files.shown(folder)}  {would or 'is '}back in place: a process was killed replacing it")
    for each in pruned.removed:
        say(terminal, f"{plan.files.shown(each.folder)}  {would}removed, {size_of(each.size)}: {each.reason}")
    if pruned.removed:
        say(terminal, f"{size_of(sum(each.size for each in pruned.removed))} {would}free now")
    else:
        say(terminal, "there is nothing to remove")


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
        size_of(found.size) if found.size else "",
        time_of(found.written),
    )


def _state(each: StageSurvey) -> str:
    if each.record is not None:
        return "finished"
    if each.newest is not None:
        steps = each.stage.steps
        return f"step {each.newest}" + (f" of {steps}" if steps else "")
    return "begun, no checkpoint" if each.begun else "not begun"
