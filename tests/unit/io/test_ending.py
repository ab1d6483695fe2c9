"""Being asked to end: at once, or after the state is kept; the second time at once in any case."""

import signal

import pytest

from castor.io import ending
from castor.io.ending import asked_to_end, interrupt, keeping_state


@pytest.fixture(autouse=True)
def not_asked():
    yield
    ending._asked.clear()


def test_work_without_a_state_ends_at_once():
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)
    assert asked_to_end()


def test_work_with_a_state_is_asked_once_and_then_interrupted():
    told = []
    with keeping_state(lambda: told.append("ending")):
        interrupt(signal.SIGTERM, None)
        assert asked_to_end()
        assert told == ["ending"]
        with pytest.raises(KeyboardInterrupt):
            interrupt(signal.SIGTERM, None)
    assert told == ["ending"]


def test_after_the_body_work_ends_at_once_again():
    with keeping_state(lambda: None):
        pass
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)
