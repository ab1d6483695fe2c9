"""`castor runs` in an empty folder."""

import signal
import sys

import pytest

from castor.cli.main import main
from castor.run.files import RUNS


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUNS, raising=False)


@pytest.fixture
def runs(monkeypatch, capfd):
    """Runs a command of the group in this process; gives its exit code and what it says, each run of spaces as one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setenv("COLUMNS", "160")

    def runs(*arguments):
        monkeypatch.setattr(sys, "argv", ["castor", "runs", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        told = (captured.out + captured.err).splitlines()
        return ended.value.code or 0, [" ".join(line.split()) for line in told if line.strip()]

    yield runs
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def resumed(monkeypatch):
    """What resume would carry out: the config, and how the pipeline is called."""
    from castor.cli import carry_out

    told = []

    class Pipeline:
        def run(self, fresh=False, accept_changes=False):
            told.append((fresh, accept_changes))

    def carried_out(config, work, **options):
        told.append(config)
        assert not options
        work(Pipeline())

    monkeypatch.setattr(carry_out, "carry_out", carried_out)
    return told
