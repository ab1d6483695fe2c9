"""The run folder: who may work in it."""

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from castor.io.errors import CastorError
from castor.run.files import RUNS, RunFiles
from castor.run.lock import GLANCE_S, at_work, exclusive
from castor.run.records import Records
from tests.conftest import ROOT

HOLD = """
import sys
from pathlib import Path
from castor.run.files import RunFiles
from castor.run.lock import exclusive
with exclusive(RunFiles(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_folder_is_one_process_s_alone(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(CastorError, match=f"another castor \\(process {other.pid}\\) is at work in"),
        exclusive(RunFiles(tmp_path)),
    ):
        pass
    other.kill()
    other.communicate()
    with exclusive(RunFiles(tmp_path)):
        pass


def test_looking_who_is_at_work_disturbs_nobody(tmp_path):
    files = RunFiles(tmp_path)
    assert at_work(files) is None
    assert not files.lock.exists()
    with exclusive(files):
        assert at_work(files) == str(os.getpid())
    assert at_work(files) is None
    with open(files.lock) as looking:  # another one looks at this very moment
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert at_work(files) is None
        threading.Timer(GLANCE_S / 4, looking.close).start()
        with exclusive(files):
            assert at_work(files) == str(os.getpid())


def test_a_new_run_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUNS, str(tmp_path / "shared"))
    with exclusive(RunFiles(Path("runs/demo"))):
        assert (tmp_path / "shared" / "runs" / "demo" / ".lock").is_file()
    assert not Path("runs").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 2, "stages": {"sft": {"key": "k"}}}'])
def test_damaged_records_are_said_so(tmp_path, text):
    files = RunFiles(tmp_path)
    files.records.write_text(text)
    with pytest.raises(CastorError, match=r"stages\.json is damaged: put it back, or remove it"):
        Records(files).of("sft")
