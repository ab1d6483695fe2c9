"""Failures of a call through a handle: a replica that is gone, one that has raised, and time that is up."""

import grpc
import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.gateway.calls import ReplicaFailed, ReplicaGone, calling


class Broken(grpc.RpcError):
    pass


@pytest.mark.parametrize(
    ("raised", "told", "words"),
    [
        (RayActorError(), ReplicaGone, "RayActorError"),
        (ActorUnavailableError("away", None), ReplicaGone, "ActorUnavailableError"),
        (DeploymentUnavailableError.__new__(DeploymentUnavailableError), ReplicaGone, "DeploymentUnavailableError"),
        (BackPressureError.__new__(BackPressureError), ReplicaGone, "BackPressureError"),
        (Broken(), ReplicaGone, "Broken"),
        (ConnectionResetError(), ReplicaGone, "ConnectionResetError"),
        (RayTaskError("judge", "traceback", ValueError("secret")), ReplicaFailed, "^ValueError$"),
        (ValueError("secret"), ReplicaFailed, "^ValueError$"),
        (TimeoutError(), TimeoutError, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failures_are_told_apart_and_repeat_no_text(
    raised: Exception, told: type[Exception], words: str | None
) -> None:
    with pytest.raises(told, match=words), calling():
        raise raised
