"""What integration tests share that need no Ray."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """A process group of this process alone, for engines outside of actors."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch

    from engines.deepspeed_engine import init_process_group

    init_process_group(0, 1, 0, torch.distributed.HashStore(), 60)
    yield
    deepspeed.comm.destroy_process_group()  # and what DeepSpeed remembers of it
    os.environ.clear()
    os.environ.update(before)
