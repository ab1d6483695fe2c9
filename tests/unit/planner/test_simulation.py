"""The simulation of actors, against schedules worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor.planner.simulation import Actor, Machine, Simulation


def run(*yields):
    """A driver that waits for each of these lists of calls in turn."""
    yield from yields


def test_an_actor_serves_its_calls_in_order():
    simulation, actor = Simulation(), Actor("a", [Machine()])
    first, second = (simulation.call("work", [actor], seconds) for seconds in (2.0, 3.0))
    assert simulation.run(run([second])) == 5.0
    assert (first.ended, second.started, second.ended) == (2.0, 2.0, 5.0)
    assert actor.busy(5.0) == 5.0


def test_a_call_waits_for_those_it_reads_and_holds_up_those_behind_it():
    simulation, a, b = Simulation(), Actor("a", [Machine()]), Actor("b", [Machine()])
    made = simulation.call("make", [a], 4.0)
    reads = simulation.call("read", [b], 1.0, [made])
    behind = simulation.call("other", [b], 1.0)
    assert simulation.run(run([reads, behind])) == 6.0
    assert (reads.started, behind.started) == (4.0, 5.0)


def test_a_collective_begins_when_the_last_actor_comes_to_it():
    simulation = Simulation()
    actors = [Actor("a", [Machine()]) for _ in range(3)]
    for actor, seconds in zip(actors, (1.0, 2.0, 3.0), strict=True):
        simulation.call("own", [actor], seconds)
    together = simulation.call("all", actors, 1.0)
    assert simulation.run(run([together])) == 4.0
    assert actors[0].busy(4.0) == 2.0  # it waited from 1 to 3


def test_actors_on_one_gpu_slow_each_other_down_while_both_work():
    simulation, gpu = Simulation(), Machine()
    long, short = (simulation.call("work", [Actor("a", [gpu])], seconds) for seconds in (3.0, 1.0))
    simulation.run(run([long, short]))
    assert short.ended == 2.0  # at half its speed
    assert long.ended == 4.0  # 1 of 3 done at 2, then alone
    assert gpu.busy == 4.0


def test_what_is_urgent_stops_the_others_on_its_gpu():
    simulation, gpu = Simulation(), Machine()
    sampling = simulation.call("sample", [Actor("engine", [gpu])], 3.0)
    begin = simulation.call("wait", [Actor("other", [Machine()])], 1.0)
    weights = simulation.call("weights", [Actor("taker", [gpu], urgent=True)], 0.5, [begin])
    simulation.run(run([sampling, weights]))
    assert (weights.ended, sampling.ended) == (1.5, 3.5)


@pytest.mark.parametrize(("cores", "seconds"), [(1.0, 2.0), (1.5, 4 / 3), (2.0, 1.0), (4.0, 1.0)])
def test_threads_share_the_cores_of_a_node(cores, seconds):
    simulation, node = Simulation(), Machine(cores)
    calls = [simulation.call("work", [Actor("a", [node])], 1.0) for _ in range(2)]
    assert simulation.run(run(calls)) == pytest.approx(seconds)


def test_what_happens_at_the_end_of_a_call_may_give_further_ones():
    simulation, a, b = Simulation(), Actor("a", [Machine()]), Actor("b", [Machine()])
    judged = []
    chunk = simulation.call("chunk", [a], 2.0, then=lambda: judged.append(simulation.call("judge", [b], 1.0)))

    def driver():
        yield [chunk]
        yield judged

    assert simulation.run(driver()) == 3.0


def test_waiting_for_what_never_ends_is_an_error():
    simulation, a, b = Simulation(), Actor("a", [Machine()]), Actor("b", [Machine()])
    one = simulation.call("one", [a], 1.0)
    simulation._planned.clear()
    with pytest.raises(RuntimeError, match="never ends"):
        simulation.run(run([simulation.call("two", [b], 1.0, [one])]))


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=8), st.floats(1.0, 4.0))
def test_no_work_is_lost_and_none_is_done_twice(seconds, cores):
    simulation, node = Simulation(), Machine(cores)
    calls = [simulation.call("work", [Actor("a", [node])], each) for each in seconds]
    end = simulation.run(run(calls))
    assert end >= max(max(seconds), sum(seconds) / cores) - 1e-9
    assert end <= sum(seconds) + 1e-9
