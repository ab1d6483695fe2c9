"""`castor serve`: a run or a config behind a guarded gateway; its API keys; and new weights for a running one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from castor.cli.failures import failures_told
from castor.cli.serve_keys import app as keys_app
from castor.io.errors import CastorError
from castor.io.files import local_path

if TYPE_CHECKING:
    from castor.config.serve import Serve


class _RunByDefault(typer.core.TyperGroup):
    """`castor serve RUN` is `castor serve run RUN`: what is no command's name is a run or a config.

    So is `run` itself, the name of a folder, where options or nothing follows.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-"):
            is_folder = args[0] == "run" and (len(args) == 1 or "=" in args[1])
            if is_folder or args[0] not in self.commands:
                args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Serve policies behind guarded OpenAI routes, and their judges: castor serve RUN_OR_CONFIG [KEY=VALUE]...",
)
app.add_typer(keys_app, name="keys")


@app.command("run")
def run(
    what: Annotated[
        Path,
        typer.Argument(parser=local_path, metavar="RUN_OR_CONFIG", help="a finished run, or a YAML file"),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="e.g. gateway.port=8080 policies=[sft] guard.mode=annotate"),
    ] = None,
) -> None:
    """Serve until Ctrl-C. `run` may be left out: castor serve runs/demo."""
    from castor.io.terminal import captured
    from castor.run.files import RunFiles

    config = serve_config(what, options or [])
    folder = config.run_dir
    if folder is not None and not RunFiles(folder).folder.is_dir():
        raise CastorError(f"there is no run at {folder}: give the folder of a finished run, e.g. runs/demo")
    log = Path("castor-serve.log") if folder is None else RunFiles(folder).serve_log
    with captured(log) as terminal, failures_told(terminal, log):
        terminal.line(f"[bold]castor serve[/]  {what}  [dim]log: {log}[/]")
        from serve.app import Endpoints, serve_forever

        def announce(endpoints: Endpoints) -> None:
            for name, guard in endpoints.models.items():
                terminal.line(f"[bold]{name}[/]  {endpoints.root}/v1  guard: {guard}")
            if endpoints.judges:
                routes = "/v1/moderations" + (" and /v1/score" if "cost" in endpoints.judges else "")
                terminal.line(f"judges   {', '.join(endpoints.judges)}: {endpoints.root}{routes}")
            if config.gateway.page:
                terminal.line(f"page     {endpoints.root}/")
            who = "an API key is needed" if endpoints.keys else "no key is needed: this machine's users only"
            terminal.line(f"health   {endpoints.root}/healthz  /readyz  /metrics\n{who}; Ctrl-C ends it")

        serve_forever(config, announce)


@app.command()
def update(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of a policy that is being served, e.g. ppo_lag")],
    folder: Annotated[
        Path, typer.Argument(parser=local_path, metavar="FOLDER", help="its new weights, e.g. runs/b/ppo_lag/policy")
    ],
    address: Annotated[
        str, typer.Option("--address", help="of the Ray cluster; default: RAY_ADDRESS, else the one on this machine")
    ] = "auto",
) -> None:
    """New weights for a policy that is being served, proven by every replica, without a failed request."""
    from castor.config.cluster import RayCluster

    where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if Path("~/.ray/auth_token").expanduser().is_file():  # Ray's own, which a cluster on this machine asks for
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from serve.update import update_policy

    done = update_policy(name, folder, RayCluster(address=where))
    print(f"{done.name} is served by {done.replicas} replica{'s' * (done.replicas != 1)}; digest {done.digest[:16]}")


def serve_config(what: Path, options: list[str]) -> Serve:
    """The config of a run's folder, or of a file. Raises CastorError."""
    from castor.config.load import load_file, load_section
    from castor.config.serve import Serve

    if what.suffix in (".yaml", ".yml"):
        return load_file(Serve, what, options)
    return load_section(Serve, {"run_dir": what}, options)
