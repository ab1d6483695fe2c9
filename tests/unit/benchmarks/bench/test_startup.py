"""What the processes of a run are."""

import pytest

from benchmarks.bench.startup import causes, role


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ray::RolloutWorker.generate", "RolloutWorker"),
        ("ray::learner-0-18ebd265:LearnerWorker.__init__", "LearnerWorker"),
        ("ray::LearnerWorker", "LearnerWorker"),
        ("ray::IDLE", "IDLE"),
        ("/usr/bin/python -m castor pipeline config.yaml", "castor"),
        ("/usr/lib/ray/raylet --static", "Ray"),
    ],
)
def test_a_process_is_known_by_its_command_line(line, expected):
    assert role(line) == expected


def test_what_a_record_says_of_the_start_becomes_figures():
    startup = {"seconds": {"Ray": 5.0, "actors": 20.0}, "actors": {"learner": {"imports": 7.5}}}
    assert causes({"key": "", "seconds": 60.0, "startup": startup}) == {
        "run: Ray, s": 5.0, "run: actors, s": 20.0, "run: learner, imports, s": 7.5,
    }  # fmt: skip
    assert causes({"key": "", "seconds": 60.0}) == {}
