"""The `castor` command. It sits on top of everything; heavy modules are imported where they are used."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from castor.cli.assess import assess
from castor.cli.data import app as data_app
from castor.cli.export import export
from castor.cli.failures import Interrupted, failures_told, interrupt
from castor.io.encoding import encode_readably
from castor.io.errors import CastorError
from castor.io.files import local_path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Safe RLHF for large language models on a Ray cluster.",
)
app.add_typer(data_app, name="data")
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="overrides, e.g. seed=1 rlhf.ppo_lag.steps=20, or YAML files laid over CONFIG"
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the config, the placement and the memory; start nothing")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="do not go on from the checkpoint of a run that was cut short")]
Runs = Annotated[list[str] | None, typer.Option("--run", help="only this one (may be repeated); default: all of them")]

EXIT_USER, EXIT_INTERRUPTED = 2, 130


def main() -> None:
    """Entry point. Exit codes: 0 done; 2 something to put right; 1 a failure; 130 interrupted."""
    encode_readably(sys.stdout, sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        app(standalone_mode=True)
    except CastorError as error:
        print(f"castor: {error}", file=sys.stderr)
        sys.exit(EXIT_USER)
    except (Interrupted, KeyboardInterrupt):
        print("castor: interrupted; the same command does not run the finished stages again", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)  # a thread may be waiting inside Ray, whose core aborts an orderly interpreter exit


@app.command()
def pipeline(
    config: ConfigFile,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="run every stage again")] = False,
    dry_run: DryRun = False,
) -> None:
    """All stages of CONFIG in order: model, SFT, preference data, reward, cost, RLHF, evaluation, report."""

    def work(context: Any) -> None:
        from trainers.pipeline import run_pipeline

        run_pipeline(context, fresh)

    _run(config, overrides, dry_run, work)


def _stage_command(name: str, summary: str) -> None:
    def command(config: ConfigFile, overrides: Overrides = None, fresh: Fresh = False, dry_run: DryRun = False) -> None:
        _run(config, overrides, dry_run, lambda context: _one_stage(context, name, fresh))

    command.__doc__ = summary
    app.command(name)(command)


_stage_command("sft", "Supervised fine-tuning.")
_stage_command("collect", "Preference data: responses of the SFT policy, judged and written as PKU-SafeRLHF rows.")
_stage_command("reward", "Train the reward model.")
_stage_command("cost", "Train the cost model.")


def _named_command(section: str, summary: str) -> None:
    def command(
        config: ConfigFile, overrides: Overrides = None, run: Runs = None, fresh: Fresh = False, dry_run: DryRun = False
    ) -> None:
        _run(config, overrides, dry_run, lambda context: _named_stages(context, config, section, run, fresh))

    command.__doc__ = summary
    app.command(section)(command)


_named_command("moderation", "Train the moderation models of CONFIG.")
_named_command("dpo", "Train the policies of CONFIG that learn from preference rows alone: DPO, SafeDPO, SACPO.")


@app.command()
def rlhf(config: ConfigFile, overrides: Overrides = None, run: Runs = None, dry_run: DryRun = False) -> None:
    """The RLHF runs of CONFIG."""
    _run(config, overrides, dry_run, lambda context: _named_stages(context, config, "rlhf", run))


app.command()(assess)


@app.command()
def evaluate(config: ConfigFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Compare the policies on held-out prompts; write summary.json and report.html."""

    def work(context: Any) -> None:
        from castor.run.check import stage_sections
        from trainers.pipeline import close

        _one_stage(context, "evaluate")
        close(context, {name: name != "evaluate" for name in stage_sections(context.config)})

    _run(config, overrides, dry_run, work)


@app.command()
def serve(
    run: Annotated[
        Path, typer.Argument(parser=local_path, metavar="RUN", help="folder of a finished run, e.g. runs/demo")
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. port=8080 policy=sft")
    ] = None,
) -> None:
    """Serve the policy of RUN behind the OpenAI routes, and its score models behind /v1/score."""
    from castor.config.load import load_section
    from castor.config.serve import Serve
    from castor.io.terminal import captured

    config, log = load_section(Serve, {"run_dir": run}, options or []), run / "logs" / "serve.log"
    if not run.is_dir():
        raise CastorError(f"there is no run at {run}: give the folder of a finished run, e.g. runs/demo")
    with captured(log) as terminal, failures_told(terminal, log):
        terminal.line(f"[bold]castor serve[/]  {run}  [dim]log: {log}[/]")
        from serve.app import Endpoints, serve_forever

        def announce(endpoints: Endpoints) -> None:
            terminal.line(f"[bold]{endpoints.model}[/]  {endpoints.base_url}  models, completions, chat/completions")
            if endpoints.score_url:
                terminal.line(f"scores   {endpoints.score_url}")
            terminal.line(f"health   {endpoints.health_url}\nCtrl-C ends it")

        serve_forever(config, announce)


app.command()(export)


def _named_stages(context: Any, path: Path, section: str, names: list[str] | None, fresh: bool = False) -> None:
    """Run the stages `names` of a section that holds stages by name, or all of them."""
    known = list(getattr(context.config, section))
    for name in names or known:
        if name not in known:
            raise CastorError(f"{path} has no {section} run {name!r}: it has {', '.join(known) or 'none'}")
        _one_stage(context, name, fresh)


def _one_stage(context: Any, name: str, fresh: bool = False) -> None:
    """Run one stage whatever was finished before; the record keeps the key the pipeline would give it."""
    from trainers.pipeline import run_stage, stage_keys

    for stage, key in stage_keys(context):
        if stage == name:
            run_stage(context, name, key, fresh)
            return
    if context.config.rounds is not None:
        raise CastorError(f"{name} is a stage of every round, and rounds run as a whole: use castor pipeline")
    raise CastorError(f"the config has no section for {name!r}: add one, see configs/demo.yaml")


def _run(path: Path, overrides: list[str] | None, dry_run: bool, work: Callable[[Any], None]) -> None:
    from castor.config.load import load_config
    from castor.run.check import check

    config = load_config(path, overrides or [])
    check(config)
    if dry_run:
        from castor.dry_run.describe import describe

        print(describe(config))
        return
    with _context(config) as context:
        work(context)


@contextmanager
def _context(config: Any) -> Iterator[Any]:
    """Log, terminal and tracker around a command, and Ray from the first stage on that has work to do."""
    from castor.config.load import dump_config
    from castor.io.files import write_text
    from castor.io.terminal import captured
    from castor.run.folder import RunFolder, held

    log = config.run_dir / "logs" / "castor.log"
    with held(config.run_dir), captured(log) as terminal, failures_told(terminal, log):
        write_text(config.run_dir / "config.yaml", dump_config(config))
        terminal.line(f"[bold]castor[/]  {config.run_dir}  [dim]log: {log}[/]")
        from castor.run.tracking import Tracker
        from trainers.context import Context

        settings = config.model_dump(mode="json")
        with ExitStack() as stack:
            tracker = Tracker(config.wandb, config.run_dir / "wandb", config.run_dir.name, settings)
            stack.callback(tracker.finish)

            @functools.cache
            def join_cluster() -> None:
                from actors.cluster import cluster

                stack.enter_context(cluster(config.ray))

            yield Context(config, RunFolder(config), terminal, tracker, join_cluster)


if __name__ == "__main__":
    main()
