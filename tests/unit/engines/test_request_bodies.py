"""Bodies that no route of the served policy should have to cope with, and whose fault an error is."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, model_validator

from engines.request_bodies import MAX_DEPTH, JSONBodies, parse


def nested(depth, value=0):
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"prompt": "\xff"}', "not JSON"),
        (b"[" * 100_000, "nested more than"),
        (json.dumps(nested(MAX_DEPTH)).encode(), None),
        (json.dumps(nested(MAX_DEPTH + 1)).encode(), "nested more than"),
        (b'{"stop": "\\ud800"}', "half of a surrogate pair"),
        (b'{"messages": [{"content": [{"text": "a\\udfffb"}]}]}', "half of a surrogate pair"),
        (b'{"logit_bias": {"\\ud800": 1}}', "half of a surrogate pair"),
        (b'{"stop": "\\ud83d\\ude00 \\u0000"}', None),
        (b'{"temperature": NaN}', "not finite"),
        (b'{"temperature": [-Infinity]}', "not finite"),
        (b'{"temperature": 1e999}', "not finite"),
        (f'{{"top_k": {10**30}}}'.encode(), "more than 64 bits"),
        (f'{{"top_k": {-(2**63)}}}'.encode(), None),
        (b'{"top_k": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"prompt": "\\ud83d\\ude00", "stream": true, "seed": 9223372036854775807, "top_p": 0.5, "n": null}', None),
    ],
)  # fmt: skip
def test_faults_of_bodies(body, fault):
    if fault is None:
        assert parse(body) == json.loads(body)
        return
    with pytest.raises(ValueError, match=fault):
        parse(body)


class Guided(BaseModel):
    guide: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _stumbles(cls, data):
        data["guide"].get("json")
        return data


@pytest.fixture
def client():
    app = FastAPI()

    @app.post("/guided")
    def guided(request: Guided):
        raise {"index": IndexError, "runtime": RuntimeError}[request.guide["json"]]("a fault of our own")

    app.add_middleware(JSONBodies)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("guide", [0, True, "x", [], 1.5, None])
def test_a_model_that_stumbles_over_a_value_is_the_senders_fault(client, guide):
    answer = client.post("/guided", json={"guide": guide})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 400
    assert "another type" in answer.json()["error"]["message"]


def test_an_error_of_the_server_stays_one(client):
    for kind in ("index", "runtime"):
        assert client.post("/guided", json={"guide": {"json": kind}}).status_code == 500
    assert client.post("/guided", json={"guide": {"json": 1}}).status_code == 422  # the framework's own answer


def test_a_refused_body_has_the_shape_of_an_error(client):
    answer = client.post("/guided", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
