"""The gateway on Ray Serve: what one replica is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from actors.group import actor_env
from castor.config.gateway import Audit
from castor.config.serve import Serve
from castor.config.training import Resources
from castor.run.files import RunFiles
from serve.gateway.admission import Admission
from serve.gateway.app import build
from serve.gateway.audit import AuditLog
from serve.gateway.completions import Completions, Model
from serve.gateway.door import Door
from serve.gateway.judging import Judging
from serve.gateway.metrics import Metrics
from serve.gateway.services import Services, Votes
from serve.gateway.verifier import Verifier
from serve.targets import Targets, guard_mode

RESOURCES = Resources(cpus=0.25)


class GatewayServer:
    """One replica."""

    def __init__(
        self, targets: Targets, config: Serve, policies: dict[str, DeploymentHandle], judges: DeploymentHandle | None
    ) -> None:
        self.targets, self.config, self.policies, self.judges = targets, config, policies, judges

    def __serve_build_asgi_app__(self) -> Any:
        """The routes. Called by Serve once, in the replica's loop."""
        config, targets, options = self.config, self.targets, self.config.gateway
        metrics = Metrics()
        share = max(options.replicas, 1)
        admission = Admission(max(options.max_running // share, 1), options.max_waiting // share, options.max_wait_s)
        door = Door(options, _verifier(config), admission, metrics)
        judging = None
        if self.judges is not None:
            judging = Judging(self.judges, tuple(targets.judges), metrics)
        models = {}
        for target in targets.policies:
            guard = config.guard_of(target.name)
            handle = self.policies[target.name]
            models[target.name] = Model(target.name, handle, guard, guard_mode(targets, guard), target.max_model_len)
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
    env = actor_env(RESOURCES)
    if config.gateway.keys_env:
        env[config.gateway.keys_env] = os.environ.get(config.gateway.keys_env, "")
    limits = config.gateway
    deployment = serve.deployment(
        name="gateway",
        num_replicas=limits.replicas,
        # one that has taken in all it can hold still answers, with 429
        max_ongoing_requests=2 * (limits.max_running + limits.max_waiting) + 64,
        ray_actor_options={"num_cpus": RESOURCES.cpus, "runtime_env": {"env_vars": env}},
        graceful_shutdown_timeout_s=3.0,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=10,
        health_check_timeout_s=120,
    )
    return deployment(serve.ingress()(GatewayServer)).bind(targets, config, policies, judges)
