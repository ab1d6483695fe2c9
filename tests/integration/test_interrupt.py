"""Ctrl-C ends a run with its state saved and leaves no process behind; bad input ends it with one sentence."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from castor.run.files import RunFiles
from tests.conftest import ROOT
from tests.integration.small import SMALL


class Screen:
    """What a terminal has been shown so far. It is read all the time: a full one blocks whoever writes to it."""

    def __init__(self, leader):
        self.leader, self.shown = leader, ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with contextlib.suppress(OSError):
            while piece := os.read(self.leader, 65536):
                self.shown += piece.decode(errors="replace")

    def wait_for(self, pattern, process, timeout):
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.shown):
            assert process.poll() is None, self.shown
            assert time.monotonic() < deadline, f"{pattern} was not shown within {timeout} s: {self.shown[-2000:]!r}"
            time.sleep(0.2)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_saves_the_state_and_ends_everything(tmp_path, how):
    """Ctrl-C reaches the whole group of processes; SIGTERM, for which Ray has a handler of its own, the command."""
    command = [sys.executable, "-m", "castor", "pipeline", "configs/demo.yaml", f"run_dir={tmp_path / 'run'}"]
    leader, follower = pty.openpty()  # a terminal, so that the live progress bar is on the screen
    screen = Screen(leader)
    process = subprocess.Popen(
        [*command, *SMALL, "sft.max_steps=100000"], cwd=ROOT, stdout=follower, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    try:
        screen.wait_for(r"\b[1-9][0-9]*/100000\b", process, 900)  # the bar counts the steps of the SFT stage
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 5
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 130, (errors, screen.shown[-2000:])
        step = re.fullmatch(r"castor: interrupted; the same command goes on after step (\d+) of sft", errors.strip())
        assert step, errors
        assert "ending when the state is saved; once more to end without it" in screen.shown
        assert RunFiles(tmp_path / "run").stage("sft").training.steps() == [int(step[1])]
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, [p.cmdline() for p in alive]
    finally:
        os.close(leader)
        os.close(follower)
        if process.poll() is None:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pipeline", "configs/absent.yaml"], "no config file at configs/absent.yaml"),
        (["pipeline", "configs/demo.yaml", "sfft.max_steps=3"], "unknown key 'sfft'; did you mean 'sft'?"),
        (
            ["rlhf", "configs/demo.yaml", "rlhf.ppo_lag.multipliers.lambda_max=0.1"],
            "lambda_max (0.1) is below lambda_init",
        ),
        (["sft", "configs/demo.yaml", "sft.data.source=absent.jsonl"], "absent.jsonl"),
        (["reward", "configs/demo.yaml"], "stage:sft has no model at"),
    ],
)
def test_what_a_person_can_put_right_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path):
    if "absent.yaml" not in arguments[1]:
        arguments = [*arguments, f"run_dir={tmp_path / 'run'}", "wandb.mode=disabled"]
    done = subprocess.run(
        [sys.executable, "-m", "castor", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
