"""Joining a Ray cluster, or starting one for this run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from actors.forking import forking
from castor.config.cluster import DETERMINISTIC, RayCluster
from castor.io.errors import CastorError

DETERMINISTIC_ENV = {  # of every process of a run; on a CPU none of it changes a number
    DETERMINISTIC: "1",
    "VLLM_BATCH_INVARIANT": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
REGISTER_S = 240  # for a worker to be up, on a busy machine and with the imports of the first one
START_ATTEMPTS = 2  # Ray gives its own processes 30 s to come up, hard-coded; a busy machine may miss that once


@contextmanager
def cluster(config: RayCluster, *, engines: bool = False) -> Iterator[None]:
    """Connected to a cluster while the body runs; one that was started here ends with it.

    With `engines` vLLM's are among what will be started on it.

    The cluster is the one `address` names, else the one this process belongs to (a submitted job, RAY_ADDRESS), else a
    new one on this machine. Raises CastorError when it cannot be reached or started.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    # Ray starts workers at nice 15, where they starve behind everything else the machine runs
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", str(REGISTER_S))
    environment: dict[str, Any] = {"env_vars": DETERMINISTIC_ENV if config.deterministic else {}}
    with ExitStack() as stack:
        if not address and (python := stack.enter_context(forking(environment["env_vars"], engines=engines))):
            environment["py_executable"] = python
        stack.callback(ray.shutdown)
        _connect(address, config, environment)
        yield


def gpus_of_nodes() -> list[int]:
    """GPUs of every node that is up, as Ray counts them."""
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


def _connect(address: str | None, config: RayCluster, environment: dict[str, Any]) -> None:
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            _init(address, config, environment)
            break
        except Exception as error:  # Ray raises bare exceptions here
            ray.shutdown()
            if attempt < START_ATTEMPTS and not address:
                continue
            where = f"reach the Ray cluster at {address}" if address else "start Ray on this machine"
            first = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
            raise CastorError(
                f"could not {where}: {first}; is it running, is a port free, is the token the same?"
            ) from error


def _init(address: str | None, config: RayCluster, environment: dict[str, Any]) -> None:
    if address:
        ray.init(address=address, log_to_driver=True, runtime_env=environment)
    else:
        ray.init(
            runtime_env=environment,
            address="local",  # never a cluster that merely happens to run on this machine
            num_cpus=config.num_cpus,
            object_store_memory=None if config.object_store_mib is None else config.object_store_mib << 20,
            include_dashboard=False,
            log_to_driver=True,
        )
