"""References to models: folders as absolute paths, hub ids fetched once and then found without the hub."""

import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import save
from torch import zeros

from castor.io.errors import CastorError
from castor.model_reference import ModelReference

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "owner/safe": {
        "config.json": b"{}", "tokenizer.json": b"{}", "chat_template.jinja": b"x", "castor_score.json": b"{}",
        "model.safetensors": save({"w": zeros(2)}), "pytorch_model.bin": b"pickle", "modeling_own.py": b"",
        "notes.md": b"n", "onnx/model.safetensors": b"again",
    },
    "owner/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
}  # fmt: skip
TEXTS = {"config.json", "tokenizer.json", "chat_template.jinja", "castor_score.json", "modeling_own.py"}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as fetching a model asks for."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        path = self.path.partition("?")[0].strip("/")
        for repo, files in FILES.items():
            if path.startswith(f"api/models/{repo}/tree/"):
                self._json([{"type": "file", "path": n, "size": len(b), "oid": _etag(b)} for n, b in files.items()])
                return
            if path.startswith(f"api/models/{repo}"):
                self._json({"id": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in files]})
                return
            name = path.removeprefix(f"{repo}/resolve/{SHA}/")
            if name in files:
                self._send(files[name], {"ETag": f'"{_etag(files[name])}"', "X-Repo-Commit": SHA})
                return
        self._send(b"", {"X-Error-Code": "RepoNotFound"}, status=404)

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def resolve(hub, home, call, **env):
    """What an expression on ModelReference gives in a fresh process: a value, or the text of a CastorError."""
    code = (
        "import json; from castor.model_reference import ModelReference; from castor.io.errors import CastorError\n"
        f"try:\n    found = {call}\nexcept CastorError as error:\n    found = f'CastorError: {{error}}'\n"
        "print(json.dumps(None if found is None else str(found)))"
    )
    own = {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}", "NO_PROXY": "127.0.0.1"}
    environment = {**os.environ, **own, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0", **env}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def names(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_hub_id_is_fetched_once_and_then_found_without_the_hub(hub, tmp_path):
    ask = functools.partial(resolve, hub, tmp_path)
    assert ask("ModelReference('owner/safe').here()") is None
    texts = ask("ModelReference('owner/safe').local(weights=False)")
    assert names(texts) == TEXTS
    assert ask("ModelReference('owner/safe').here()") == texts
    whole = ask("ModelReference('owner/safe').local()")  # what is there is no whole model: the weights are fetched
    assert names(whole) == TEXTS | {"model.safetensors"}
    hub.asked.clear()
    assert ask("ModelReference('owner/safe').local()") == whole
    assert ask("ModelReference('owner/safe').local()", HF_HUB_OFFLINE="1") == whole
    assert hub.asked == []


def test_evaluation_publishes_the_weights_of_a_hub_id(hub, tmp_path):
    call = "__import__('actors.folder_weights').folder_weights.folder_tensors('owner/safe')"
    assert resolve(hub, tmp_path, f"dict({call})") == "{'w': tensor([0., 0.])}"


def test_pickles_are_fetched_only_where_they_may_be_read(hub, tmp_path):
    ask = functools.partial(resolve, hub, tmp_path)
    assert names(ask("ModelReference('owner/pickled').local()")) == {"config.json"}
    assert names(ask("ModelReference('owner/pickled').local(pickled=True)")) == {"config.json", "pytorch_model.bin"}
    assert names(ask("ModelReference('owner/safe').local(pickled=True)")) == TEXTS | {"model.safetensors"}


def test_a_hub_id_that_cannot_be_had_is_named(hub, tmp_path):
    ask = functools.partial(resolve, hub, tmp_path)
    for name in ("'owner/none'", "'owner/safe', 'v2'"):
        said = ask(f"ModelReference({name}).local()", HF_HUB_OFFLINE="1" if "safe" in name else "0")
        assert said.startswith("CastorError: there is no model at 'owner/"), said
        assert "no hub id that can be had" in said
        assert "\n" not in said


def test_a_folder_is_its_absolute_path(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model", "./model", "~/model", folder):
        assert ModelReference.of(name).local() == ModelReference.of(name).here() == folder
    with pytest.raises(CastorError, match="is a folder, which has no revision 'main'"):
        ModelReference("model", "main").local()
    for name in ("/no/where", "a/b/c"):
        with pytest.raises(CastorError, match=r"there is no model at .*: it is no folder and no hub id"):
            ModelReference(name).local()
        assert ModelReference(name).here() is None


def test_a_reference_is_taken_as_it_is():
    trusted = ModelReference("owner/name", "v1", True)
    assert ModelReference.of(trusted) is trusted
    assert ModelReference.of(Path("a/b")) == ModelReference.of("a/b") == ModelReference("a/b")
    assert str(trusted) == "owner/name@v1"
