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
from ray.serve.api import RunTarget

from actors.cluster import cluster
from castor.config.serve import Serve
from castor.io.errors import CastorError
from serve.policy import policy_app
from serve.scores import scores_app
from serve.targets import Targets, require_free_port, resolve

SERVE_ENV = {  # a proxy that a loaded machine keeps from answering in time would be killed over and over
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "180",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "180",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "60",
}
SHUTDOWN_S = 6.0  # for Serve; what is left after that is killed
POLL_S = 0.5
QUIET = {"log_level": "WARNING", "enable_access_log": False}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Endpoints:
    """What is being served."""

    base_url: str  # of OpenAI clients: http://host:port/v1
    model: str  # the policy's model name
    score_url: str | None  # None where the run has no cost model
    health_url: str


def serve_forever(config: Serve, announce: Callable[[Endpoints], None]) -> None:
    """Serve the run until SIGINT or SIGTERM, then take everything down. Call it from the main thread.

    `announce` is called once every route answers. An interrupt before that is a KeyboardInterrupt for the caller.

    Raises:
        CastorError: no such run, not finished, the port is in use, another Serve runs on the cluster.
        RuntimeError: a replica could not be started, or not within `start_timeout_s`.

    """
    targets = resolve(config)
    require_free_port(config.host, config.port)
    for key, value in SERVE_ENV.items():
        os.environ.setdefault(key, value)
    started: list[psutil.Process] = []
    try:
        with cluster(config.ray), _signals_interrupt():
            _require_no_serve()
            with _deployment(started):
                announce(deploy(config, targets))
                with suppress(KeyboardInterrupt):
                    threading.Event().wait()
    finally:
        _end(started)


def deploy(config: Serve, targets: Targets) -> Endpoints:
    """Deploy on the connected cluster; returns when every route answers. Raises as `serve_forever`."""
    _require_gpus(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options={"host": config.host, "port": config.port},
        proxy_location="HeadOnly",
        logging_config=QUIET,
        controller_options={"runtime_env": {"env_vars": {key: os.environ[key] for key in SERVE_ENV}}},
    )
    apps = [RunTarget(policy_app(targets, config), "policy", "/", QUIET)]
    if targets.judges:
        name = f"{config.run_dir.absolute().name}/{targets.judges['cost'].name}"
        apps.append(RunTarget(scores_app(name, targets, config), "scores", "/v1/score", QUIET))
    serve.run_many(apps, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    _wait_until_running([app.name for app in apps], config.start_timeout_s)
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    root = f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
    scores = f"{root}/v1/score" if targets.judges else None
    return Endpoints(f"{root}/v1", targets.name, scores, f"{root}/-/healthz")


def _require_no_serve() -> None:
    """A cluster has one Serve with one HTTP address; one that somebody else started is theirs to shut down."""
    status = serve.status()
    if status.proxies or status.applications:
        raise CastorError("Serve already runs on this cluster: stop it with `serve shutdown`, or use another cluster")


def _require_gpus(config: Serve) -> None:
    wanted = max(config.resources.gpus, config.score_resources.gpus)
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
