"""Rollout workers that one RLHF run leaves to the next one."""

import psutil
import ray

from actors.group import has_died
from tests.chaos.rlhf_run import ROLLOUT, Run, kill, watched_groups


def test_runs_that_share_engines_give_what_each_gives_alone(undisturbed, tiny_models, tmp_path, monkeypatch):
    """The first run's engine dies before the second can take it, and the second starts its own, which the third takes.

    What trains is started by each, and nothing is left at the end.
    """
    monkeypatch.chdir(tmp_path)
    rollout = ROLLOUT | {"transfer": "gloo"}  # engines join another group with every learner
    run = Run(tmp_path / "run", tiny_models, earlier=["first", "second"], rollout=rollout)
    made, started = watched_groups(monkeypatch)
    killed = []
    run.at("✓[/] first", lambda: killed.append(kill(made[0].rollout.workers[0])))
    run.pipeline.run()
    first, second, third = (groups.rollout.workers for groups in made)
    assert len(killed) == 1
    assert not psutil.pid_exists(killed[0])
    assert [groups.rollout.taken for groups in made] == [False, False, True]
    assert first != second == third
    assert [groups.rollout.restarts for groups in made] == [0, 0, 0]
    assert started == 3 * started[:4]
    left = [worker.__ray_ready__.remote() for worker in third]
    assert len(ray.wait(left, num_returns=len(left), timeout=60)[0]) == len(left)
    assert all(map(has_died, left))
    assert run.result() == undisturbed
