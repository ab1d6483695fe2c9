"""The run folder: who may work in it."""

import subprocess
import sys

import pytest

from castor.io.errors import CastorError
from castor.run.files import RunFiles
from castor.run.lock import exclusive
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
