"""The run folder: who may work in it."""

import subprocess
import sys

import pytest

from castor.io.errors import CastorError
from castor.run.folder import held
from tests.conftest import ROOT

HOLD = """
import sys
from pathlib import Path
from castor.run.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_folder_is_one_process_s_alone(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(CastorError, match=f"another castor \\(process {other.pid}\\) is at work in"), held(tmp_path):
        pass
    other.kill()
    other.communicate()
    with held(tmp_path):
        pass
