"""How commands end: by an interrupt, by what a person can put right, by a failure."""

import signal

import pytest
import typer

from castor.cli.failures import Interrupted, failures_told
from castor.io import ending
from castor.io.ending import Ended, interrupt
from castor.io.errors import CastorError
from castor.io.terminal import Terminal


@pytest.fixture(autouse=True)
def not_asked():
    yield
    ending._asked.clear()


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


def test_work_that_kept_its_state_says_from_where_it_goes_on(tmp_path):
    with pytest.raises(Interrupted, match="goes on after step 3"), failures_told(Terminal(), tmp_path / "log"):
        raise Ended("the same command goes on after step 3 of ppo")
