"""New weights for a policy that is being served, without a failed request."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from actors.cluster import cluster
from castor.config.cluster import RayCluster
from castor.data.tokens.template import require_same_tokenizer
from castor.io.errors import CastorError, first_line
from castor.model_reference import ModelReference
from engines.weights.folder import folder_update, shapes
from serve.policy import deployment_of
from serve.targets import APPLICATION, Target
from serve.versions import Version, Versions

FIND_S, LOAD_S = 30.0, 3600.0


@dataclass(frozen=True)
class Updated:
    """What all replicas have proven to hold."""

    name: str  # policy@number
    replicas: int
    digest: str


def update_policy(name: str, folder: Path, config: RayCluster) -> Updated:
    """Give every replica of a policy the weights in a folder, which all nodes must see.

    Replicas take them over in turn. Answers under way are finished with the weights they began with, and requests that
    come meanwhile wait, for the time of loading.

    Raises CastorError when no such policy is served, the folder holds another architecture or tokenizer, or a replica
    did not prove that it holds the new weights: all replicas then go back to what they had, and that one is replaced.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with cluster(config):
        return asyncio.run(_update(name, folder))


async def _update(name: str, folder: Path) -> Updated:
    handle: Any = serve.get_deployment_handle(deployment_of(name), APPLICATION)
    try:
        target, current = await asyncio.wait_for(handle.describe.remote(), FIND_S)
    except (TimeoutError, RayError, RayServeException) as error:
        raise CastorError(f"no policy {name!r} is served on this cluster: {type(error).__name__}") from None
    versions = Versions(target.versions)
    before = versions.of(name)
    update = _checked(target, folder, max(current.number, before.number if before else 0) + 1)
    versions.put(name, Version(update.version, str(folder.absolute()), update.digest, tuple(update.pieces)))
    try:
        found = await asyncio.wait_for(handle.broadcast("refresh").results_async(), LOAD_S)
    except (TimeoutError, RayError, RayServeException) as error:
        # under a new number, so that replicas that had taken the new weights over go back, too
        former = folder_update(_folder(before or current), update.version + 1)
        versions.put(
            name, Version(former.version, str(_folder(before or current)), former.digest, tuple(former.pieces))
        )
        with suppress(TimeoutError, RayError, RayServeException):  # of those that are replaced: they begin with it
            await asyncio.wait_for(handle.broadcast("refresh").results_async(), LOAD_S)
        why = error.cause if isinstance(error, RayTaskError) else error
        raise CastorError(
            f"a replica of {name} did not take the new weights over and is replaced; all go back to the former, as "
            f"{name}@{former.version}: {first_line(why)}"
        ) from error
    return Updated(f"{name}@{update.version}", len(found), update.digest)


def _folder(version: Version) -> Path:
    return ModelReference.of(version.folder).local()


def _checked(target: Target, folder: Path, number: int) -> Any:
    """The update, if it fits the policy. Raises CastorError."""
    update = folder_update(folder, number)
    served = target.model.local()
    ours, theirs = shapes(served), shapes(folder)
    if ours != theirs:
        differ = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        raise CastorError(
            f"{folder} holds another architecture than {target.name} has: {len(differ)} tensors differ, first "
            f"{differ[0]} ({theirs.get(differ[0])} instead of {ours.get(differ[0])}); serve it as a policy of its own"
        )
    require_same_tokenizer(target.model, str(folder), f"an update of {target.name}")
    return update
