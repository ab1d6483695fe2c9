"""The `castor` command. It sits on top of everything; heavy modules are imported where they are used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from castor.cli.assess import assess
from castor.cli.carry_out import carry_out
from castor.cli.chat import chat
from castor.cli.data import app as data_app
from castor.cli.explain import explain
from castor.cli.export import export
from castor.cli.failures import Interrupted
from castor.cli.plan import plan
from castor.cli.profile import ask_for_profile
from castor.cli.runs import app as runs_app
from castor.cli.serve import app as serve_app
from castor.io.encoding import encode_readably
from castor.io.ending import listen
from castor.io.errors import CastorError
from castor.run.stages import kinds
from castor.run.stages.stage import Stage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Safe RLHF for large language models on a Ray cluster.",
)
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="overrides, e.g. seed=1 rlhf.ppo_lag.steps=20, or YAML files laid over CONFIG"
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="print what differs from the defaults, the placement and the memory; start nothing"),
]
Full = Annotated[bool, typer.Option("--full", help="with --dry-run: the whole config, every default in it")]
Fresh = Annotated[bool, typer.Option("--fresh", help="do not go on from the checkpoint of a run that was cut short")]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes", help="go on from the checkpoint of a run that was cut short and has changed since"
    ),
]
Profiled = Annotated[
    bool,
    typer.Option("--profile", help="write NAME.profile/timeline.json beside every stage, for https://ui.perfetto.dev"),
]
ProfileTorch = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME]...",
        help="--profile, and torch traces of these actors or stages: learner, reward, signal-harm",
    ),
]
Runs = Annotated[list[str] | None, typer.Option("--run", help="only this one (may be repeated); default: all of them")]

EXIT_USER, EXIT_INTERRUPTED = 2, 130


def main() -> None:
    """Entry point. Exit codes: 0 done; 2 something to put right; 1 a failure; 130 interrupted."""
    encode_readably(sys.stdout, sys.stderr)
    listen()
    try:
        app(standalone_mode=True)
    except CastorError as error:
        print(f"castor: {error}", file=sys.stderr)
        sys.exit(EXIT_USER)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        print(f"castor: interrupted; {interrupted}".removesuffix("; "), file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)  # a thread may be waiting inside Ray, whose core aborts an orderly interpreter exit


@app.command()
def pipeline(
    config: ConfigFile,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="run every stage again")] = False,
    accept_changes: AcceptChanges = False,
    dry_run: DryRun = False,
    full: Full = False,
    profile: Profiled = False,
    profile_torch: ProfileTorch = None,
) -> None:
    """All stages of CONFIG in order: model, SFT, preference data, reward, cost, RLHF, evaluation, report."""
    from castor.config.load import load_config

    def work(pipeline: Any) -> None:
        ask_for_profile(pipeline, profile, profile_torch)
        pipeline.run(fresh, accept_changes)

    carry_out(load_config(config, overrides or []), work, dry_run=dry_run, full=full, starts_over=fresh)


def _stage_command(kind: type[Stage]) -> None:
    """The command of a kind of stage: all stages of that kind in the config, or those chosen by name."""

    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        run: Runs = None,
        fresh: Fresh = False,
        accept_changes: AcceptChanges = False,
        dry_run: DryRun = False,
        full: Full = False,
        profile: Profiled = False,
        profile_torch: ProfileTorch = None,
    ) -> None:
        from castor.config.load import load_config

        def work(pipeline: Any) -> None:
            ask_for_profile(pipeline, profile, profile_torch)
            _run_stages(pipeline, config, kind, run, fresh, accept_changes)

        carry_out(load_config(config, overrides or []), work, dry_run=dry_run, full=full)

    command.__doc__ = kind.summary
    app.command(kind.field)(command)


for _kind in kinds().values():
    if _kind.summary:
        _stage_command(_kind)

app.command()(plan)
app.command()(assess)
app.command()(explain)


app.add_typer(serve_app, name="serve")
app.command()(chat)
app.command()(export)


def _run_stages(
    pipeline: Any, path: Path, kind: type[Stage], names: list[str] | None, fresh: bool, accept_changes: bool
) -> None:
    """Run the stages of one kind, all or those of these names; what is trained and finished only if it is `fresh`."""
    known = {stage.name: stage for stage in pipeline.plan.of_kind(kind.field)}
    for name in names or ():
        if name not in known:
            raise CastorError(f"{path} has no {kind.field} stage {name!r}: it has {', '.join(known) or 'none'}")
    stages = [pipeline.plan.stage(name) for name in names or known or [kind.field]]
    pipeline.run_each(
        stages,
        lambda stage: kind.can_resume and not fresh and pipeline.is_finished(stage),
        fresh=fresh,
        accept_changes=accept_changes,
    )
    if kind.makes == "report":
        pipeline.close({name: name != kind.field for name in pipeline.plan.stages})


if __name__ == "__main__":
    main()
