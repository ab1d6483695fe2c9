"""New weights for a running server, under load: no request fails, and every answer names what it was sampled from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from castor.models.tiny import make_demo_model
from tests.integration.serve.conftest import MODEL, ROOT, TEXT, Server
from tests.integration.serve.load import ask
from tests.integration.serve.test_faults import CLEAN, Load

UPDATE_S = 200


def _address(server: Server) -> str:
    """Of the server's Ray cluster."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    found = re.search(r"--gcs-address=(\S+)", " ".join(" ".join(process.cmdline()) for process in processes))
    assert found is not None
    return found[1]


def _update(server: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    address = _address(server)
    command = [sys.executable, "-m", "castor", "serve", "update", "ppo_lag", str(folder), "--address", address]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=UPDATE_S)


def _greedy(server: Server) -> str:
    return ask(server, TEXT[0], temperature=0).answers[0].text


def test_an_update_under_load_and_back(server: Server, tmp_path: Path) -> None:
    first, new = _greedy(server), tmp_path / "new"
    make_demo_model(MODEL, TEXT, seed=5, folder=new)
    clients = Load(server, [TEXT[0]])
    for thread in clients.threads:
        thread.start()
    try:
        clients.wait_for(lambda outcomes: len(outcomes) >= 8, 60)
        done = _update(server, new)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.startswith("ppo_lag@1 is served by 1 replica; digest ")
        clients.wait_for(lambda outcomes: len(outcomes) >= 8, 60)
    finally:
        clients.ended.set()
        for thread in clients.threads:
            thread.join(120)
    assert [outcome for outcome in clients.outcomes if outcome.error is not None] == []
    assert {outcome.version for outcome in clients.outcomes} == {"ppo_lag@0", "ppo_lag@1"}
    assert _greedy(server) != first
    back = _update(server, server.run / "ppo_lag" / "policy")
    assert back.returncode == 0, back.stderr[-3000:]
    assert _greedy(server) == first


def test_what_does_not_fit_is_refused_and_nothing_changes(server: Server, tmp_path: Path) -> None:
    first = _greedy(server)
    other, strange = tmp_path / "other", tmp_path / "strange"
    make_demo_model(MODEL.model_copy(update={"layers": 1}), TEXT, seed=0, folder=other)
    done = _update(server, other)
    assert done.returncode == 2
    assert "holds another architecture than ppo_lag has" in done.stderr
    shutil.copytree(server.run / "ppo_lag" / "policy", strange)
    for file in strange.glob("*.safetensors"):
        file.unlink()
    done = _update(server, strange)
    assert done.returncode == 2
    assert "holds no weights" in done.stderr
    assert _greedy(server) == first


TAMPERED = """
import sys
from dataclasses import replace
from pathlib import Path
import serve.update as update
from castor.config.cluster import RayCluster
from castor.io.errors import CastorError

right, told = update.folder_update, []

def first_wrong(folder, number):
    told.append(number)
    found = right(folder, number)
    return replace(found, digest="0" * len(found.digest)) if len(told) == 1 else found

update.folder_update = first_wrong
try:
    update.update_policy("ppo_lag", Path(sys.argv[1]), RayCluster(address=sys.argv[2]))
except CastorError as error:
    print(f"refused: {error}")
"""


def test_weights_that_do_not_arrive_are_noticed_and_the_former_are_back(server: Server, tmp_path: Path) -> None:
    """The files are not those whose digest was announced: no answer is sampled from what was loaded."""
    first, new, replica = _greedy(server), tmp_path / "new", server.replica("policy")
    make_demo_model(MODEL, TEXT, seed=6, folder=new)
    env = os.environ | {"RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-c", TAMPERED, str(new), _address(server)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=UPDATE_S)
    assert "refused: a replica of ppo_lag did not take the new weights over and is replaced" in done.stdout, done.stderr
    assert "the weights did not arrive" in done.stdout
    deadline = time.monotonic() + UPDATE_S
    while (found := ask(server, TEXT[0], temperature=0)).error is not None:
        assert found.error in CLEAN
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert found.answers[0].text == first
    assert server.replica("policy").pid != replica.pid
