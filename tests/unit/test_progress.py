"""The board between a job's workers and the driver."""

from typing import Any, cast

from actors.progress import Progress, ProgressBoard
from actors.startup import Start


def test_a_step_is_never_told_of_before_the_start():
    board = cast(Any, ProgressBoard).__ray_actor_class__()
    assert board.news() == ([], [], False)
    start, steps = Start({"model": 1.0}, 2.0), [Progress(1, 9), Progress(2, 9)]
    board.note_starts([start])
    for step in steps:
        board.post(step)
    assert board.news() == ([start], steps, False)
    assert board.news() == ([], [], False)


def test_a_job_is_over_when_its_workers_have_ended_after_they_made_everything():
    board = cast(Any, ProgressBoard).__ray_actor_class__()
    board.note_end()  # of workers that were lost
    assert not board.news()[2]
    board.note_made()
    assert not board.news()[2]
    board.note_end()
    assert board.news()[2]
