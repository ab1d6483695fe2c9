"""Failures of a call through one of Serve's handles, told apart by whether the replica was there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle


def direct(handle: DeploymentHandle) -> DeploymentHandle:
    """The same handle, whose calls go by gRPC, not as objects of Ray: fewer hops."""
    return handle.options(_by_reference=False)


class ReplicaGone(Exception):
    """There is no replica, or it died meanwhile."""


class ReplicaFailed(Exception):
    """It is there, and has raised what stands as the cause's name."""


@contextmanager
def calling() -> Iterator[None]:
    """Raise ReplicaGone or ReplicaFailed for whatever goes wrong with a call but a time limit."""
    try:
        yield
    except TimeoutError:
        raise
    except RayTaskError as error:
        raise ReplicaFailed(type(error.cause).__name__) from error
    except (RayError, RayServeException, grpc.RpcError, ConnectionError) as error:
        raise ReplicaGone(type(error).__name__) from error
    except Exception as error:  # over gRPC what a replica raised comes as it is
        raise ReplicaFailed(type(error).__name__) from error
