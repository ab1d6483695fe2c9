"""What goes wrong within a run that all processes survive: numbers, disks, prompts."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import ray

from actors.learner import LearnerWorker
from actors.rollout import RolloutWorker
from actors.suspects import Suspects
from castor.io.checkpoint import StagedFolder
from castor.io.errors import CastorError
from castor.io.files import read_json, read_jsonl
from castor.run.checkpoints import Checkpoints
from tests.chaos.rlhf_run import ENGINE, ROLLOUT, STEPS, Run
from trainers.prompts import fitting_prompts


def nan_while_armed(flag):
    """A learner's rank whose advantages are no numbers while a file is there; it notes the seeds it was given."""
    base = LearnerWorker.__ray_metadata__.modified_class

    class Poisoned(base):
        def _combined(self, advantages, coefficients):
            combined = super()._combined(advantages, coefficients)
            return combined * np.float32("nan") if flag.exists() else combined

    return ray.remote(Poisoned)


def test_gradients_that_are_not_finite_and_a_disk_that_refuses(ray_session, tiny_models, tmp_path, monkeypatch):
    """With rollout and learning at the same time, a disk refuses the first checkpoint. Two steps are left out; the
    third in a row sends the run back, and on with other samples.
    """
    monkeypatch.chdir(tmp_path)
    learner = {"engine": ENGINE, "max_skipped": 2}
    options = {"checkpoint": {"every_steps": 1, "keep": 9}, "rollout": ROLLOUT | {"max_staleness": 1}}
    run = Run(tmp_path / "run", tiny_models, learner=learner, steps=5, **options)
    flag, poisoned = tmp_path / "poison", []
    monkeypatch.setattr("trainers.rlhf.groups.LearnerWorker", nan_while_armed(flag))
    commit, refused = StagedFolder.commit, []

    def refuse_the_first(staged, marks):
        if not refused and staged.folder.name.startswith("step-"):
            refused.append(staged.folder.name)
            raise CastorError("the disk is full")
        commit(staged, marks)

    monkeypatch.setattr(StagedFolder, "commit", refuse_the_first)
    tell = run.screen.line

    def line(text):
        tell(text)
        if "step   1/5" in text and not poisoned:
            poisoned.append(text)
            flag.touch()
        if "goes on after" in text:
            flag.unlink(missing_ok=True)

    run.screen.line = line
    run.go()
    told = [text for text in run.screen.lines if "after step" in text and "save" not in text]
    assert "the gradients of 3 steps in a row were not finite" in told[0]
    back = int(told[1].removeprefix("run goes on after step "))  # as far as checkpoints were written by then
    assert 0 <= back <= 3
    assert (len(told), read_json(run.files.run_record)["restarts"]) == (2, 1)
    assert refused == ["step-000000001"]
    saves = [text for text in run.screen.lines if "save" in text]
    assert (
        "the state after step 1 is not saved[/]: the disk is full\nrun goes on, unsaved from its beginning" in saves[0]
    )
    assert "run is saved again, after step " in saves[1]
    numbers = [step["metrics"] for step in run.numbers()]
    assert [step["skipped_updates"] for step in numbers] == [float(2 <= step <= back) for step in range(1, 6)]
    assert ["grad_norm" in step for step in numbers] == [step["skipped_updates"] == 0 for step in numbers]
    assert len(run.ledger()) == 5


def deadly_to(base, prompt, witnesses):
    """A rollout worker that one prompt kills."""

    class Deadly(base):
        def generate(self, requests, decode):
            if any(request.prompt.text == prompt.read_text() for request in requests):
                (witnesses / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().generate(requests, decode)

    return ray.remote(Deadly)


@pytest.fixture
def scorer():
    """The judge of `Run` as a remote scorer: its URL, and an event while which it is out of order."""
    down = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
            reply = json.dumps({"scores": [{"reward": float(len(item["response"]) % 7)} for item in items]}).encode()
            self.send_response(503 if down.is_set() else 200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args):
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", down
        server.shutdown()


def test_a_prompt_that_kills_its_engine_and_a_scorer_that_cannot_be_reached(
    undisturbed, scorer, tiny_models, tmp_path, monkeypatch
):
    """The prompt is known once it kills an engine that samples nothing else; the step is dealt without it, and so are
    all later ones, which every checkpoint says, too. While the scorer is down, the run pauses.
    """
    monkeypatch.chdir(tmp_path)
    text, witnesses = tmp_path / "text", tmp_path / "witnesses"
    witnesses.mkdir()
    number = undisturbed[3][1].responses[4][0]  # the third prompt of step 2

    def fitting(*args):
        prompts = fitting_prompts(*args)
        text.write_text(prompts[number].text)
        return prompts

    monkeypatch.setattr("trainers.rlhf.stage.fitting_prompts", fitting)
    monkeypatch.setattr("actors.rollout_pool.FinishingWorker", deadly_to(RolloutWorker, text, witnesses))
    owed, note_death = [], Suspects.note_death
    monkeypatch.setattr(Suspects, "note_death", lambda self, each: owed.append(each) or note_death(self, each))
    url, down = scorer
    own = {"role": "objective", "http": {"url": url, "retries": 1, "retry_wait_s": 0.1}, "critic": ENGINE}
    run = Run(tmp_path / "run", tiny_models, signals={"own": own | {"critic_model": tiny_models.reward}})
    monkeypatch.setattr("trainers.rlhf.recovery.FIRST_PAUSE_S", 1.0)
    run.at(4, down.set)
    kept, paused, tell = [], [], run.screen.line

    def until_the_second_pause(text):
        tell(text)
        if "pauses for" in text:
            paused.append(text)
            if len(paused) == 2:
                down.clear()

    run.screen.line = until_the_second_pause
    run.at(STEPS, lambda: kept.append(read_json(Checkpoints(run.files.training).newest().record)))
    run.go()
    assert kept[0]["prompts"]["aside"] == [number]
    (told,) = [line for line in run.screen.lines if "is set aside" in line]
    assert told.startswith(f"[yellow]prompt {number} is set aside[/]: 3 engines died of it")
    assert len(paused) == 2
    assert all("run pauses for 1 s[/]: the scorer at" in text and "answered HTTP 503" in text for text in paused)
    assert any("the same command goes on after step 4 of run" in line for line in run.screen.lines)
    assert len(list(witnesses.iterdir())) == len(owed) == 3
    assert {request.prompt.text for requests in owed[-1] for request in requests} == {text.read_text()}
    assert [row["prompt"] for row in read_jsonl(run.files.deadly_prompts)] == [text.read_text()]
    record = read_json(run.files.run_record)
    assert (record["deadly_prompts"], record["restarts"]) == ([number], 0)
    assert [entry.aside for entry in run.ledger()] == [(), (number,), *[()] * (STEPS - 2)]
    assert run.numbers()[0] == undisturbed[0][0]
