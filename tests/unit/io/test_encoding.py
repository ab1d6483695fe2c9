"""Streams that are not UTF-8."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from castor.io.encoding import READABLE, encode_readably
from castor.io.terminal import Terminal

ROOT = Path(__file__).parents[3]


def stream(encoding, **options):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, **options)


def written(to):
    to.flush()
    return to.buffer.getvalue().decode(to.encoding)


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "✓ λ 1.05 … −0.5\N{NO-BREAK SPACE}%", "ok lambda 1.05 ... -0.5 %"),
        ("latin-1", "✓ λ ± é", "ok lambda ± é"),
        ("ascii", "läufe/ж \U0001f600", r"l\xe4ufe/\u0436 \U0001f600"),
        ("utf-8", "λ läufe \udce9", r"λ läufe \udce9"),
        ("utf-16", "λ", "λ"),
    ],
)
def test_what_an_encoding_lacks_is_spelled_out(encoding, text, shown):
    to = stream(encoding, errors="strict")
    encode_readably(to)
    to.write(text)
    assert written(to) == shown


def test_other_streams_are_left_alone():
    encode_readably(io.StringIO())


def test_reading_is_not_concerned():
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", READABLE)


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_bars_and_lines_on_any_terminal(encoding, width):
    to = stream(encoding, errors=READABLE)
    terminal = Terminal(Console(file=to, width=width, force_terminal=True, color_system=None, _environ={}))
    with terminal.bar("sft") as bar:
        bar.update(1, 4, "reward 0.50 λ 1.05 …")
        lines = terminal.console.render_lines(bar._progress.get_renderable())
    terminal.line("✓ sft λ")
    assert len(lines) <= 2  # one line, and none that wraps
    assert written(to)


PROGRAM = """
import sys
from pathlib import Path
from castor.cli.main import main
from castor.io.terminal import captured
with captured(Path(sys.argv.pop(1))) as terminal:
    print("\\u03bb l\\xe4ufe to the log")
    terminal.line("\\u2713 \\u03bb")
main()
"""


def run(tmp_path, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "a.log"), *arguments],
        capture_output=True, cwd=ROOT, timeout=120, env={"PYTHONPATH": str(ROOT), "COLUMNS": "40", **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda environment: "-".join(environment.values()),
)  # fmt: skip
def test_the_command_line_on_a_terminal_without_unicode(tmp_path, environment):
    rows = tmp_path / "läufe λ.jsonl"
    rows.write_text('{"prompt": "ж", "response": "…", "is_safe": true}\n' * 3, encoding="utf-8")
    shown = run(tmp_path, "--help", **environment)
    assert shown.returncode == 0
    assert b"Safe RLHF" in shown.stdout
    assert (tmp_path / "a.log").read_text(encoding="utf-8").splitlines()[1] == "λ läufe to the log"
    checked = run(tmp_path, "data", "check", str(rows), "--out", str(tmp_path / "found"), **environment)
    assert checked.returncode == 0, checked.stderr
    failed = run(tmp_path, "data", "check", str(tmp_path / "ж.jsonl"), **environment)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
