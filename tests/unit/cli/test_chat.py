"""`castor chat` at the end of its input."""

import io

import pytest
from rich.console import Console

from castor.cli.chat import _question


def test_an_end_of_the_input_is_an_empty_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("how do i tune the guitar ?\n"))
    console = Console(file=io.StringIO())
    assert _question(console) == "how do i tune the guitar ?"
    assert _question(console) == ""
