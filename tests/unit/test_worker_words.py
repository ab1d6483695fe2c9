"""What a unit test reads of stdout while the Ray of its process prints what workers write."""

import sys

import pytest
from ray._private import worker


def test_what_workers_write_is_not_in_a_unit_tests_output(capsys: pytest.CaptureFixture[str]) -> None:
    worker.print_worker_logs({"lines": ["said by a worker"], "pid": 1, "ip": "1.2.3.4", "job": "1"}, sys.stdout)
    assert capsys.readouterr().out == ""
