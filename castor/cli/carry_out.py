"""Carrying out a config: what every command does that runs stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from castor.cli.failures import failures_told
from castor.io.errors import CastorError

if TYPE_CHECKING:
    from castor.config.pipeline import Config


def carry_out(
    config: Config,
    work: Callable[[Any], None],
    *,
    dry_run: bool = False,
    full: bool = False,
    starts_over: bool = False,
) -> None:
    """Plan, check, and do the work, unless only the plan is wanted, `full` with the whole config.

    A run of another version can only start over.
    """
    if full and not dry_run:
        raise CastorError("--full tells more of a dry run: add --dry-run, or leave it out")
    from castor.run.check import check
    from castor.run.plan import make_plan
    from castor.run.records import Records

    plan = make_plan(config)
    check(plan)
    if dry_run:
        from castor.dry_run.describe import describe

        print(describe(plan, full))
        return
    from castor.dry_run.fit import require_fit
    from castor.run.check_installed import require_stack

    require_fit(plan)
    require_stack(plan)
    if not starts_over:
        Records(plan.files).check()
    with _pipeline(plan) as pipeline:
        work(pipeline)


@contextmanager
def _pipeline(plan: Any) -> Iterator[Any]:
    """Log, terminal and tracker around a command, and Ray from the first stage on that has work to do."""
    from castor.config.load import dump_config
    from castor.io.checkpoint import repair_folders
    from castor.io.ending import listen
    from castor.io.files import write_text
    from castor.io.terminal import captured
    from castor.run.lock import exclusive

    config, files = plan.config, plan.files
    with exclusive(files), captured(files.log) as terminal, failures_told(terminal, files.log):
        for folder in repair_folders(files.folder):
            terminal.line(f"{files.shown(folder)} is back in place: an earlier command was killed while it replaced it")
        write_text(files.config, dump_config(config))
        terminal.line(f"[bold]castor[/]  {config.run_dir}  [dim]log: {files.shown(files.log)}[/]")
        from castor.run.trackers.trackers import Trackers
        from trainers.pipeline import Pipeline

        with ExitStack() as stack:
            tracker = Trackers.of(config, files)
            stack.callback(tracker.finish)

            def join_cluster(engines: bool) -> None:
                from actors.cluster import cluster

                stack.enter_context(cluster(config.ray, engines=engines))
                listen()  # Ray has put a handler of SIGTERM in the place of ours, which ends the process at once

            yield Pipeline(plan, terminal, tracker, join_cluster)
