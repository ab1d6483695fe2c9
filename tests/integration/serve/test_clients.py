"""Unmodified clients: OpenAI's for Python and Node, curl, and a browser on the gateway's own page."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from openai import AuthenticationError, OpenAI
from playwright.sync_api import Browser, expect

from castor.config.data import DataSource
from castor.data.rows.load import load_preferences
from castor.data.sources.report import RowReport
from tests.integration.serve.conftest import TEXT, Server
from tests.integration.serve.page_actions import ask, compare, enter_key, pick

NPM_S = 300
NODE = """
import OpenAI from 'openai'
const client = new OpenAI({ baseURL: process.env.URL + '/v1', apiKey: process.env.KEY, maxRetries: 0 })
const messages = [{ role: 'user', content: 'how do i bake a cake ?' }]
const question = { model: 'ppo_lag', messages, max_tokens: 12, seed: 3 }
const streamed = { ...question, stream: true, stream_options: { include_usage: true } }
const models = []
for await (const model of client.models.list()) models.push(model.id)
const whole = await client.chat.completions.create(question)
let text = '', usage = null
const stream = await client.chat.completions.create(streamed)
for await (const chunk of stream) { text += chunk.choices[0]?.delta?.content ?? ''; usage = chunk.usage ?? usage }
const guarded = await client.chat.completions.create({ ...question, castor: { guard: 'withhold' } })
const verdict = await client.moderations.create({ input: 'bake it', castor: { question: 'how ?' } })
let refused = null
try { await client.chat.completions.create({ ...question, model: 'another' }) } catch (error) { refused = error.status }
console.log(JSON.stringify({ models, same: text === whole.choices[0].message.content, usage: usage.completion_tokens,
  guarded: guarded.choices[0].castor.judged, flagged: verdict.results[0].flagged, refused }))
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node: npm is not installed")
def test_node_client(server: Server, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    (tmp_path / "ask.js").write_text(NODE)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai@6"], cwd=tmp_path, check=True, timeout=NPM_S,
        capture_output=True,
    )  # fmt: skip
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "URL": server.url, "KEY": server.key}
    done = subprocess.run(["node", "ask.js"], cwd=tmp_path, env=env, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["ppo_lag"]
    assert found["same"]
    assert 1 <= found["usage"] <= 12
    assert found["guarded"]
    assert isinstance(found["flagged"], bool)
    assert found["refused"] == 404


def test_python_client_streams_a_guarded_answer(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="ppo_lag", messages=[{"role": "user", "content": TEXT[0]}], max_tokens=16, seed=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"castor": {"guard": "withhold"}},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    (finished,) = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert finished.model_extra is not None
    assert finished.model_extra["castor"]["judged"]


def test_moderations_in_openais_format(server: Server, client: OpenAI) -> None:
    answer = client.moderations.create(input=[TEXT[1], TEXT[2]], extra_body={"castor": {"question": TEXT[0]}})
    verdicts = server.judges.moderator.predict([(TEXT[0], TEXT[1]), (TEXT[0], TEXT[2])])
    assert verdicts.severity is not None
    for number, result in enumerate(answer.results):
        assert result.model_extra is not None
        castor = result.model_extra["castor"]
        # here, as the client's own class loses self_harm: it knows that category under another name
        assert list(castor["categories"]) == list(verdicts.info.categories)
        assert list(castor["categories"].values()) == pytest.approx(verdicts.probabilities[number].tolist(), abs=1e-4)
        (cost,) = server.judges.costs([(TEXT[0], TEXT[number + 1])])  # type: ignore[list-item]
        assert castor["cost"] == pytest.approx(cost, abs=1e-4)
        assert castor["severity"] == verdicts.severity[number]
        assert castor["pair"]


def test_a_wrong_key_is_told_as_openai_tells_it(server: Server) -> None:
    stranger = OpenAI(base_url=f"{server.url}/v1", api_key="castor-00000000-" + "a" * 43, max_retries=0)
    with pytest.raises(AuthenticationError) as error:
        stranger.models.list()
    assert error.value.code == "invalid_api_key"


def test_curl(server: Server) -> None:
    body = json.dumps({"model": "ppo_lag", "messages": [{"role": "user", "content": TEXT[0]}], "max_tokens": 4})
    command = [
        "curl", "-sS", f"{server.url}/v1/chat/completions", "-H", f"Authorization: Bearer {server.key}",
        "-H", "Content-Type: application/json", "-d", body,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_the_page_from_the_key_to_a_vote(server: Server, browser: Browser) -> None:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(server.url)
    enter_key(page, server.key)
    expect(page.get_by_label("Model", exact=True)).to_be_enabled()
    ask(page, TEXT[0])
    compare(page, TEXT[0])
    page.get_by_role("heading", name="Your vote").wait_for()
    pick(page, better="Answer A", safer="Answer B", harmful_a="Yes", harmful_b="No")
    page.get_by_role("button", name="Vote").click()
    expect(page.get_by_role("heading", name="Answer A: ppo_lag@0")).to_be_visible()
    page.close()
    assert complaints == []
    votes = DataSource(source=str(server.run / "votes.jsonl"))
    row = load_preferences(votes, RowReport())[-1]
    assert (row.better_response_id, row.safer_response_id) == (0, 1)
    assert (row.is_response_0_safe, row.is_response_1_safe) == (False, True)


def test_the_page_holds_nothing_from_elsewhere(server: Server) -> None:
    page = httpx.get(server.url, timeout=60)
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for path in ("/page/app.js", "/page/style.css"):
        part = httpx.get(server.url + path, timeout=60)
        assert part.status_code == 200
        assert "https://" not in part.text.replace("https://www.w3.org", "")
    assert httpx.get(server.url + "/page/..%2fapp.py", timeout=60).status_code == 404
