"""The comparison with other trainers: what both are asked for."""

import pytest

from benchmarks.bench.peers import ESTIMATORS, TRL, Steps, castor_config, trl_python, work
from benchmarks.bench.word_reward import share_of_b
from castor.config.pipeline import Config
from castor.io.errors import CastorError


@pytest.mark.parametrize("method", ESTIMATORS)
def test_castors_half_has_one_objective_no_constraint_and_no_critic(method, tmp_path):
    config = Config.model_validate(castor_config(method, work(smoke=False), "model", tmp_path / "rows", tmp_path))
    run = config.rlhf[method]
    assert (list(run.signals), list(run.constraints)) == (["b"], [])
    assert not run.has_critic("b")
    assert run.prompts_per_step * run.samples_per_prompt == 64
    assert run.learner.update_iters == run.learner.mini_batches == 1
    length = run.rollout.max_prompt_tokens + run.rollout.max_new_tokens
    assert run.learner.engine.pack_length == length <= work(smoke=False).model.max_position_embeddings


def test_the_first_steps_are_left_out():
    assert Steps.of([90.0, 50.0, 3.0, 1.0, 2.0], [0.0, 0.0, 10.0, 20.0, 30.0]) == Steps(2.0, 20.0)


def test_the_reward_is_a_share_of_words():
    assert share_of_b(["", "", ""], ["ba da", "", "bo be bi lo"]) == [0.5, 0.0, 0.75]


def test_without_a_package_index_the_section_says_that_it_needs_one(tmp_path, monkeypatch):
    for name in ("CASTOR_BENCH_CACHE", "UV_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(CastorError, match="needs a package index once"):
        trl_python()
    assert not list((tmp_path / "CASTOR_BENCH_CACHE").glob("*/.installed"))
    assert list((tmp_path / "CASTOR_BENCH_CACHE").glob(f"{TRL.replace('==', '-')}-torch-*"))
