"""`castor serve`: start or join Ray, deploy, answer until interrupted, and leave no process behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import psutil
import ray
from ray import serve
from ray.serve import Application
from ray.serve.api import RunTarget

from actors.cluster import cluster
from castor.config.guard import GuardMode
from castor.config.serve import Serve
from castor.io.errors import CastorError
from serve.gateway.server import gateway_app
from serve.judges import judges_app
from serve.policy import policy_app
from serve.replicas import ONE_LOOP
from serve.targets import (
    APPLICATION,
    Targets,
    guard_mode,
    require_free_port,
    require_keys_for_strangers,
    require_readable_keys,
    resolve,
)
from serve.versions import Versions

SHUTDOWN_S = 6.0  # for Serve; what is left after that is killed
POLL_S = 0.5
QUIET = {"log_level": "WARNING", "enable_access_log": False}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Endpoints:
    """What is being served."""

    root: str  # http://host:port
    models: dict[str, GuardMode]  # policies and what guards them
    judges: tuple[str, ...]  # kinds of judges that there are
    keys: bool  # whether a key is asked for


def serve_forever(config: Serve, announce: Callable[[Endpoints], None]) -> None:
    """Serve the run until SIGINT or SIGTERM, then take everything down. Call it from the main thread.

    `announce` is called once every route answers. An interrupt before that is a KeyboardInterrupt for the caller.

    Raises:
        CastorError: no such run, not finished, the port is in use, another Serve runs on the cluster.
        RuntimeError: a replica could not be started, or not within `start_timeout_s`.

    """
    targets = resolve(config)
    require_keys_for_strangers(config.gateway)
    require_readable_keys(config.gateway)
    require_free_port(config.gateway.host, config.gateway.port)
    for target in targets.policies:
        Versions(target.versions).forget()  # of a server that has ended
    started: list[psutil.Process] = []
    os.environ.update(ONE_LOOP)
    try:
        with cluster(config.ray, engines=True), _signals_interrupt():
            _require_no_serve()
            with _deployment(started):
                announce(deploy(config, targets))
                with suppress(KeyboardInterrupt):
                    threading.Event().wait()
    finally:
        _end(started)


def deploy(config: Serve, targets: Targets) -> Endpoints:
    """Deploy on the connected cluster; returns when every route answers. Raises as `serve_forever`."""
    _require_gpus(config, targets)
    gateway = config.gateway
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled", logging_config=QUIET)  # the gateway listens itself
    target = RunTarget(build(targets, config), APPLICATION, None, QUIET)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    _wait_until_running([target.name], config.start_timeout_s)
    host = "127.0.0.1" if gateway.host in ("0.0.0.0", "::") else gateway.host
    root = f"http://{f'[{host}]' if ':' in host else host}:{gateway.port}"
    models = {each.name: guard_mode(targets, config.guard_of(each.name)) for each in targets.policies}
    return Endpoints(root, models, tuple(targets.judges), bool(gateway.keys or gateway.keys_env))


def build(targets: Targets, config: Serve) -> Application:
    """Gateway, policies and judges, as Serve deploys them: side by side."""
    policies = {target.name: policy_app(target, config) for target in targets.policies}
    judges = judges_app(targets, config) if targets.judges else None
    return gateway_app(targets, config, policies, judges)


def _require_no_serve() -> None:
    """A cluster has one Serve with one HTTP address; one that somebody else started is theirs to shut down."""
    status = serve.status()
    if status.proxies or status.applications:
        raise CastorError("Serve already runs on this cluster: stop it with `serve shutdown`, or use another cluster")


def _require_gpus(config: Serve, targets: Targets) -> None:
    policies = [config.policy(target.name) for target in targets.policies]
    wanted = max(config.judges.resources.gpus, *(policy.resources.gpus for policy in policies))
    started_here = not (config.ray.address or os.environ.get("RAY_ADDRESS"))
    if started_here and wanted > ray.cluster_resources().get("GPU", 0):
        raise CastorError(f"a replica asks for {wanted:g} GPUs, which this machine has not: set its gpus to 0")


def _wait_until_running(names: list[str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        apps = serve.status().applications
        states = {name: apps[name].status if name in apps else "NOT_STARTED" for name in names}
        for name, state in states.items():
            if state == "DEPLOY_FAILED":
                raise RuntimeError(f"{name} could not be started: {apps[name].message}")
        if all(state == "RUNNING" for state in states.values()):
            return
        if time.monotonic() > deadline:
            findings = [d.message for app in apps.values() for d in app.deployments.values() if d.message]
            raise RuntimeError(
                f"not up within {timeout_s:.0f} s: {', '.join(f'{k} is {v}' for k, v in states.items())}; "
                f"{' '.join(findings) or 'raise start_timeout_s if the machine is only slow'}"
            )
        time.sleep(POLL_S)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt here, also in a background job, whose shell has them ignored.

    Ray sets a SIGTERM handler of its own when it is initialised, so this comes after.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deployment(started: list[psutil.Process]) -> Iterator[None]:
    """Shut Serve down afterwards, whatever happened, and note the processes that Ray started for it here."""
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # impatience must not cut the clean-up short; it is bounded
        started.extend(psutil.Process().children(recursive=True))
        try:
            asyncio.run(asyncio.wait_for(serve.shutdown_async(), SHUTDOWN_S))
        except TimeoutError:
            logging.getLogger("ray.serve").warning("Serve did not shut down within %.0f s: killing it", SHUTDOWN_S)


def _end(started: list[psutil.Process]) -> None:
    """Kill what is left of the processes; one whose pid was given to another since is left alone."""
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(started, timeout=SHUTDOWN_S)
