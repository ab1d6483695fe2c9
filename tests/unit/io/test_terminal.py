"""What reaches the person and what reaches the log."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from castor.io.terminal import Terminal

ROOT = Path(__file__).parents[3]


def plain_terminal():
    screen = io.StringIO()
    return Terminal(Console(file=screen, highlight=False, soft_wrap=True)), screen


def test_away_from_a_terminal_lines_are_plain_and_never_wrapped():
    terminal, screen = plain_terminal()
    assert not terminal.interactive
    terminal.line("[bold]cost[/] -0.50 λ " + "long " * 60)
    assert screen.getvalue() == "cost -0.50 λ " + "long " * 60 + "\n"


def test_away_from_a_terminal_a_bar_is_a_line_now_and_then():
    terminal, screen = plain_terminal()
    with terminal.bar("sft") as bar:
        bar.update(0, 0)
        for done in range(1, 101):
            bar.update(done, 100, note=f"loss {done}")
    assert screen.getvalue().splitlines() == [f"  sft: {n} of 100  loss {n}" for n in (25, 50, 75, 100)]


def test_on_a_terminal_a_bar_leaves_nothing_behind():
    screen = io.StringIO()
    terminal = Terminal(Console(file=screen, force_terminal=True, width=120))
    assert terminal.interactive

    def fail():
        with terminal.bar("sft") as bar:
            bar.update(1, 4, "loss 1.00")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    hidden, shown, cleared = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"
    output = screen.getvalue()
    assert output.rindex(shown) > output.rindex(hidden)
    assert output.endswith(cleared) or output.rindex(cleared) > output.rindex("sft")


PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from castor.io.terminal import captured

print("before")
try:
    with captured(Path(sys.argv[1])) as terminal:
        print("python stdout")
        print("python stderr", file=sys.stderr)
        os.write(1, b"descriptor 1\\n")
        os.write(2, b"descriptor 2\\n")
        subprocess.run([sys.executable, "-c", "import sys; print('child'); print('child error', file=sys.stderr)"])
        terminal.line("to the person: \\u03bb")
        with terminal.bar("sft") as bar:
            bar.update(4, 4)
        if len(sys.argv) > 2:
            raise KeyError("boom")
except KeyError:
    print("failed", file=sys.stderr)
print("after")
"""


def run(log, *arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(log), *arguments],
        capture_output=True, encoding="utf-8", cwd=ROOT, timeout=60, check=True,
    )  # fmt: skip


def test_all_output_of_the_process_and_its_children_goes_to_the_log(tmp_path):
    log = tmp_path / "logs" / "run.log"
    done = run(log)
    assert done.stdout.splitlines() == ["before", "to the person: λ", "  sft: 4 of 4  ", "after"]
    assert done.stderr == ""
    logged = ["python stdout", "python stderr", "descriptor 1", "descriptor 2", "child", "child error"]
    command, *lines = log.read_text().splitlines()
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  -c {log}", command)
    assert sorted(lines) == sorted(logged)


def test_the_log_is_appended_to_and_the_streams_come_back_after_a_failure(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("the run before\n")
    done = run(log, "fail")
    assert done.stdout.splitlines()[-1] == "after"
    assert done.stderr == "failed\n"
    lines = log.read_text().splitlines()
    assert lines[0] == "the run before"
    assert lines[1].endswith(f"-c {log} fail")
    assert len(lines) == 8


def test_no_descriptor_is_left_open(tmp_path):
    """A pipeline captures once a command; a long-lived process must not run out of descriptors."""
    program = (
        "import os, sys; from pathlib import Path; from castor.io.terminal import captured\n"
        "count = lambda: len(os.listdir('/proc/self/fd'))\n"
        "before = count()\n"
        "for _ in range(3):\n"
        "    with captured(Path(sys.argv[1])): pass\n"
        "print(count() - before)"
    )
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "0\n"


LOGS = """
import logging, sys
from pathlib import Path
from castor.io.terminal import captured

with captured(Path(sys.argv[1])):
    logging.getLogger("actors.health").info("rollout-0: starting -> healthy")
    logging.getLogger("somebody.else").info("not ours")
"""


def test_what_our_packages_log_is_in_the_log_with_its_time(tmp_path):
    subprocess.run([sys.executable, "-c", LOGS, tmp_path / "log"], check=True, timeout=60)
    text = (tmp_path / "log").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO actors\.health: rollout-0: starting", text, re.M)
    assert "not ours" not in text
