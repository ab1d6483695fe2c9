"""Which restarts of a run count against those that it is allowed."""

from trainers.rlhf.recovery import Restarts


def test_as_many_as_are_allowed():
    restarts = Restarts(allowed=2)
    assert [restarts.take(steps, node_lost=False) for steps in (0, 5, 9, 9)] == [True, True, False, False]
    assert restarts.taken == 2


def test_nodes_that_are_lost_do_not_count_where_the_run_comes_further_in_between():
    restarts = Restarts(allowed=0)
    assert all(restarts.take(steps, node_lost=True) for steps in range(100))
    assert restarts.taken == 100
    assert not restarts.take(100, node_lost=False)


def test_a_step_at_which_one_node_after_the_other_is_lost_uses_up_what_is_allowed():
    restarts = Restarts(allowed=2)
    assert [restarts.take(steps, node_lost=True) for steps in (4, 4, 3, 4)] == [True, True, True, False]
    assert restarts.take(5, node_lost=True)
