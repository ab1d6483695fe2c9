"""What a worker says again and again is said once and then counted."""

import io

from castor.io.repeats import REMEMBERED, Collapsing


def said(*texts: str) -> list[str]:
    stream = io.StringIO()
    collapsing = Collapsing(stream)
    for text in texts:
        print(text, file=collapsing)  # text and end of line come apart
    collapsing.finish()
    return stream.getvalue().splitlines()


def test_a_forwarded_line_is_written_the_1st_10th_and_100th_time() -> None:
    flood = [
        f"\x1b[36m(Cleaner pid={100 + i % 2})\x1b[0m 2026-01-01 00:00:{i % 60:02d},{i:03d} WARNING: no state"
        for i in range(120)
    ]
    first, tenth, hundredth = said(*flood)
    assert first == flood[0]
    assert tenth == f"{flood[9]}  [10 times so far]"
    assert hundredth.endswith("[100 times so far]")


def test_other_numbers_make_another_line_and_other_lines_pass() -> None:
    lines = [
        "(Worker pid=1) step 1",
        "(Worker pid=1) step 2",
        "(Other pid=1) step 1",
        "plain",
        "plain",
        "(a) x",
        "(a) x",
    ]
    assert said(*lines) == lines


def test_a_worker_without_a_name_on_another_node_is_one_too() -> None:
    assert said("(pid=1, ip=10.0.0.2) again", "(pid=7, ip=10.0.0.2) again") == ["(pid=1, ip=10.0.0.2) again"]


def test_memory_is_bounded_and_a_line_without_an_end_is_kept() -> None:
    stream = io.StringIO()
    collapsing = Collapsing(stream)
    for i in range(2 * REMEMBERED):
        collapsing.write(f"(Worker pid=1) text {i}\n")
    collapsing.write("(Worker pid=1) text 0\n(Worker pid=1) the last wor")
    assert stream.getvalue().count("text 0\n") == 2  # forgotten in between
    collapsing.write("ds")
    collapsing.finish()
    assert stream.getvalue().endswith("the last words")
    assert len(collapsing._times) == REMEMBERED
