"""How far a supervised stage has come: best metric, early stop, the folder it keeps; and the keys that ask for it."""

import math

import pytest

from castor.config.data import DataSource
from castor.config.supervised import SFT, Best, Workers
from castor.config.training import Engine, LoRA, Resources
from castor.data.rows.schemas import QARow
from castor.io.errors import CastorError
from trainers.supervised.driver import scaling, split_by_prompt
from trainers.supervised.stage_state import StageState

DATA = [DataSource()]


def validate(state, step, value, best):
    state.step = step
    return state.note_validation({"accuracy": value}, best)


@pytest.mark.parametrize(
    ("mode", "improved"), [("max", [True, True, False, False]), ("min", [True, False, True, False])]
)
def test_the_best_of_a_history(mode, improved):
    """A tie is no improvement."""
    state, best = StageState(), Best(metric="accuracy", mode=mode)
    values = [(10, 0.5), (20, 0.6), (30, 0.4), (40, 0.4)]
    assert [validate(state, step, value, best) for step, value in values] == improved
    assert state.best_step == (20 if mode == "max" else 30)
    assert state.since_best == (2 if mode == "max" else 1)
    assert state.entry(state.best_step)["accuracy"] == (0.6 if mode == "max" else 0.4)


def test_the_training_loss_is_the_mean_since_the_last_validation():
    state = StageState()
    for loss in (1.0, 3.0):
        state.note_loss(loss)
    validate(state, 2, 0.5, None)
    validate(state, 3, 0.5, None)
    assert state.history == [{"step": 2, "accuracy": 0.5, "training_loss": 2.0}, {"step": 3, "accuracy": 0.5}]
    assert state.best_step == 0


def test_a_best_metric_must_be_measured_and_finite():
    with pytest.raises(CastorError, match="'f1' is not measured: choose one of accuracy"):
        validate(StageState(), 1, 0.5, Best(metric="f1"))
    with pytest.raises(CastorError, match="accuracy is nan at step 1"):
        validate(StageState(), 1, math.nan, Best(metric="accuracy"))


def test_the_recipe_leaves_out_how_it_is_computed():
    def recipe(**options):
        return SFT(data=DATA, **options).recipe()

    plain = recipe()
    assert plain == recipe(
        workers=Workers(min=1, max=4), max_failures=9, checkpoint_every=3, resources=Resources(cpus=3)
    )
    assert plain == recipe(engine=Engine(zero_stage=3, micro_batch_tokens=7, offload={"optimizer": "cpu"}))
    assert plain != recipe(engine=Engine(dtype="bfloat16"))
    assert plain != recipe(lora=LoRA())
    assert plain != recipe(max_steps=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": {"metric": "x"}}, "best needs eval_every"),
        ({"eval_every": 3, "patience": 1}, "patience needs best"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": {"min": 3, "max": 2}}, "min 3 exceeds max 2"),
    ],
)
def test_keys_that_need_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        SFT(data=DATA, **options)


def test_elastic_workers_become_ray_trains_bounds():
    elastic = scaling(SFT(data=DATA, workers={"min": 1, "max": 3, "resize_s": 20}))
    assert (elastic.num_workers, elastic.elastic_resize_monitor_interval_s) == ((1, 3), 20)
    assert elastic.elasticity_enabled
    fixed = scaling(SFT(data=DATA, workers=2, resources=Resources(cpus=0.5)))
    assert (fixed.num_workers, fixed.resources_per_worker) == (2, {"CPU": 0.5})


def test_no_prompt_is_on_both_sides_of_a_split():
    rows = [QARow(f"prompt {i // 3}", f"answer {i}", history=(("q", str(i % 2)),)) for i in range(60)]
    training, validation = split_by_prompt(rows, 0.2, 0)
    assert sorted([*training, *validation]) == list(range(60))
    assert not {rows[i].key for i in training} & {rows[i].key for i in validation}
    assert len({rows[i].key for i in validation}) == math.ceil(0.2 * len({row.key for row in rows}))
    assert split_by_prompt([rows[0]] * 3, 0.5, 0)[1].tolist() == []
