"""How commands end: by an interrupt, by what a person can put right, by a failure."""

import signal

import pytest
import typer

from castor.cli import failures
from castor.cli.failures import Interrupted, failures_told, interrupt
from castor.io.errors import CastorError
from castor.io.terminal import Terminal


@pytest.fixture(autouse=True)
def not_asked():
    yield
    failures._asked_to_end.clear()


def test_a_failure_is_told_and_is_exit_code_1(tmp_path, capsys):
    with pytest.raises(typer.Exit) as ended, failures_told(Terminal(), tmp_path / "log"):
        raise ValueError("a number too many\nand more")
    assert ended.value.exit_code == 1
    shown = capsys.readouterr().out
    assert "castor failed: ValueError: a number too many" in shown
    assert "and more" not in shown


def test_what_a_person_can_put_right_passes(tmp_path):
    with pytest.raises(CastorError, match="give more rows"), failures_told(Terminal(), tmp_path / "log"):
        raise CastorError("give more rows")


def interrupted_then(error):
    try:
        interrupt(signal.SIGINT, None)
    finally:
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, ValueError("an actor died"), CastorError("no answer")])
def test_what_fails_after_an_interrupt_is_the_interrupt(tmp_path, capsys, error):
    with pytest.raises(Interrupted), failures_told(Terminal(), tmp_path / "log"):
        interrupted_then(error)
    assert "castor failed" not in capsys.readouterr().out
