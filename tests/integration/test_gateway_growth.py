"""The gateway grows with what its replicas hold, and each tells of all of them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from castor.config.serve import Serve
from castor.model_reference import ModelReference
from serve import replicas
from serve.app import QUIET
from serve.gateway.server import gateway_app
from serve.targets import Target, Targets

GROWN_S = 120  # until there are more replicas: Serve averages over half a minute


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
class Deaf:
    """A policy that never answers."""

    async def answer(self, path: str, body: bytes) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def url(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(replicas, "UPSCALE_DELAY_S", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gateway = {"port": port, "max_replicas": 2, "target_ongoing_requests": 2, "max_running": 8}
    config = Serve.model_validate(
        {"policies": {"deaf": {"model": "org/deaf"}}, "guard": {"mode": "off"}, "gateway": gateway}
    )
    target = Target("deaf", ModelReference("org/deaf"), 64, "pku", tmp_path / "versions.json")
    app = gateway_app(Targets((target,), {}, "pku", "none"), config, {"deaf": Deaf.bind()}, None)
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    try:
        serve.run(app, name="castor", route_prefix=None, logging_config=QUIET)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def told(url: str) -> dict[str, float]:
    """The gauges, by name."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def test_the_gateway_grows_with_what_it_holds(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(6):
            client = stack.enter_context(httpx.Client(timeout=None))
            body = {"model": "deaf", "prompt": "hello", "max_tokens": 2}
            Thread(target=client.post, args=(f"{url}/v1/completions",), kwargs={"json": body}, daemon=True).start()
        deadline = time.monotonic() + GROWN_S
        while told(url)["castor_gateway_replicas"] < 2:
            assert time.monotonic() < deadline, told(url)
            time.sleep(0.5)
        assert told(url)["castor_running"] == 6  # all are held by the first, and either tells of them
