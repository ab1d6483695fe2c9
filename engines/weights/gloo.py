"""Weights over gloo: NCCL's twin on CPUs. Buckets are in host memory on both sides, wherever the models are."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist

from engines.weights import collective


class Group(collective.Group):
    """Connections of everybody with everybody. gloo itself bounds every wait."""

    device = torch.device("cpu")

    def connect(self) -> Any:
        """See `collective.Group`."""
        return cast(Any, dist).ProcessGroupGloo(self.store, self.rank, self.invitation.size, self.timeout)


class Sender(collective.Sender):
    """See `collective.Sender`."""

    transport = "gloo"
    group_class = Group


class Receiver(collective.Receiver):
    """See `collective.Receiver`."""

    group_class = Group
