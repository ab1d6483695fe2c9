"""The gateway on Ray Serve: what one replica is made of."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from castor.config.gateway import Audit
from castor.config.serve import Serve
from castor.config.training import Resources
from castor.run.files import RunFiles
from serve.gateway.app import build
from serve.gateway.audit import AuditLog
from serve.gateway.calls import direct
from serve.gateway.completions import Completions, Model
from serve.gateway.door import Door
from serve.gateway.growth import HELD, growing
from serve.gateway.judging import Judging
from serve.gateway.listener import Listener
from serve.gateway.metrics import Metrics
from serve.gateway.services import Services, Votes
from serve.gateway.verifier import Verifier
from serve.parts import Inbox
from serve.replicas import replica_env
from serve.targets import Targets, guard_mode

RESOURCES = Resources(cpus=0)  # so that it always finds room where it has to be
HEAD = {"node:__internal_head__": 0.001}  # whose address clients know
DRAIN_S = 3.0  # granted to answers under way when it is stopped


class GatewayServer:
    """One replica. It listens itself: each part of a stream that a proxy would hand on costs as much as sampling it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, targets: Targets, config: Serve, policies: dict[str, DeploymentHandle], judges: DeploymentHandle | None
    ) -> None:
        """Listen. Raises OSError when another program has the address."""
        options = config.gateway
        self.metrics = Metrics(_shared_folder(options.port))
        self.door = Door(options, _verifier(config), self.metrics)
        self.door.share(self.metrics.replicas())
        self.inbox = Inbox()
        await self.inbox.open(ray.util.get_node_ip_address())
        app = _routes(self.door, self.inbox, targets, config, policies, judges)
        self.listener = Listener(app, options.host, options.port, DRAIN_S)
        await self.listener.open()

    async def check_health(self) -> None:
        """Raises when it does not listen any more: Serve then replaces the replica."""
        self.listener.check()
        self.door.share(self.metrics.replicas())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `replicas_wanted` goes by."""
        return {HELD: self.door.admission.held}

    async def __del__(self) -> None:
        if hasattr(self, "listener"):  # absent when the address could not be had
            await self.listener.close()
        if hasattr(self, "inbox"):
            self.inbox.close()
        if hasattr(self, "metrics"):
            self.metrics.end()


def _shared_folder(port: int) -> Path:
    """Of all replicas: they are on one node, and Ray's session there is their server's own."""
    return Path(tempfile.gettempdir()) / f"castor-gateway-{ray.get_runtime_context().get_session_name()}-{port}"


def _routes(
    door: Door,
    inbox: Inbox,
    targets: Targets,
    config: Serve,
    policies: dict[str, DeploymentHandle],
    judges: DeploymentHandle | None,
) -> FastAPI:
    options, metrics = config.gateway, door.metrics
    judging = None if judges is None else Judging(direct(judges), tuple(targets.judges), metrics)
    models = {}
    for target in targets.policies:
        guard = config.guard_of(target.name)
        handle = direct(policies[target.name])
        mode = guard_mode(targets, guard)
        models[target.name] = Model(target.name, handle, inbox, guard, mode, target.max_model_len)
    files = None if config.run_dir is None else RunFiles(config.run_dir)
    audit_file = options.audit.file or (None if files is None else files.audit_log)
    audit = None if audit_file is None else _audit(options.audit, audit_file)
    votes_file = options.votes or (None if files is None else files.votes)
    completions = Completions(door, models, judging, audit, metrics)
    services = None if judging is None else Services(judging, targets.name, config.guard)
    votes = None if votes_file is None else Votes(votes_file)
    return build(door, completions, services, votes, options.page, tuple(options.routes))


def _audit(options: Audit, path: Path) -> AuditLog:
    return AuditLog(path, max_bytes=int(options.max_mib * 2**20), files=options.files, texts=options.texts)


def _verifier(config: Serve) -> Verifier | None:
    options = config.gateway
    if options.keys is not None:
        return Verifier.from_file(options.keys)
    return None if options.keys_env is None else Verifier.from_environment(options.keys_env)


def gateway_app(
    targets: Targets, config: Serve, policies: dict[str, Application], judges: Application | None
) -> Application:
    """The application: the gateway, and all that it asks."""
    env = replica_env(RESOURCES)
    if config.gateway.keys_env:
        env[config.gateway.keys_env] = os.environ.get(config.gateway.keys_env, "")
    deployment = serve.deployment(
        name="gateway",
        **growing(config.gateway),
        ray_actor_options={"num_cpus": RESOURCES.cpus, "resources": HEAD, "runtime_env": {"env_vars": env}},
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        health_check_timeout_s=120,  # a loaded machine answers late
    )
    return deployment(GatewayServer).bind(targets, config, policies, judges)
