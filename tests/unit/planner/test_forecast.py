"""Forecasts and the search: what must hold whatever the figures of a device are."""

from dataclasses import replace

import pytest

from castor.io.errors import CastorError
from castor.planner.device import DEVICES, H100
from castor.planner.forecast import PARTS, Traffic, forecast
from castor.planner.lengths import Lengths
from castor.planner.offer import Offer
from castor.planner.search import findings, search
from tests.unit.planner.runs import MODEL, OWN, stage_of

ENGINE = {"zero_stage": 3, "gradient_checkpointing": True, "micro_batch_tokens": 4096, "offload": {"optimizer": "cpu"}}
OFFLOADED = {"role": "objective", "model": MODEL, "critic": ENGINE, "resources": OWN, "ranks": 2}
TRAFFIC = Traffic(128, Lengths(256, 512))


def step(device=H100, traffic=TRAFFIC, **section):
    stage, sizes = stage_of(**section)
    return forecast(stage, sizes, device, 8, traffic, steps=3)


def test_the_parts_of_a_step_are_the_step_and_every_group_works_or_waits():
    told = step()
    assert sum(told.parts.values()) == pytest.approx(told.step_s)
    assert set(told.groups) == {"rollout", "reference", "learner", "signal-help"}
    for group in told.groups.values():
        assert group.busy + sum(group.idle.values()) == pytest.approx(1.0)
    assert told.gpus == 1 + 1 + 2 + 2
    assert told.gpu_seconds == told.step_s * 6
    assert told.rate == pytest.approx(told.response_tokens / told.gpu_seconds)


@pytest.mark.parametrize("device", ["H100", "A100", "A10G"])
def test_more_engines_more_ranks_and_staleness_are_not_slower(device):
    figures = DEVICES[device]
    base = step(figures).step_s
    # but for chunks, of which there are fewer, larger ones towards the end, and what ranks send each other
    assert step(figures, rollout={"workers": 2}).step_s <= base * 1.02
    assert step(figures, learner={"ranks": 4}).step_s <= base * 1.02
    stale = [step(figures, rollout={"max_staleness": k, "transfer": "host"}).step_s for k in (0, 1, 2)]
    # the same work, the same order: what is sampled ahead can only wait less, but for the ends of the window
    assert stale[1] <= stale[0] * 1.001
    assert stale[2] <= stale[1] * 1.02


@pytest.mark.parametrize("figure", ["flops", "bandwidth", "link", "broadcast"])
def test_a_faster_device_is_never_slower(figure):
    assert step(replace(H100, **{figure: 2 * getattr(H100, figure)})).step_s <= step().step_s


def test_longer_responses_take_longer():
    seconds = [step(traffic=Traffic(128, Lengths(mean, 512))).step_s for mean in (64, 128, 256, 512)]
    assert seconds == sorted(seconds)


def test_the_search_finds_a_split_that_fits_and_is_not_slower_than_the_configs():
    stage, sizes = stage_of(signals={"help": OFFLOADED}, learner={"ranks": 4})
    offer = Offer(H100, 8, 8, "")
    assert not findings(stage, sizes, offer)
    now = forecast(stage, sizes, H100, 8, TRAFFIC)
    found = search(stage, sizes, offer, TRAFFIC)
    modes = [each.split.mode for each in found]
    assert len(set(modes)) == len(modes)
    for each in found:
        assert not findings(each.stage, sizes, offer)
        assert each.stage.section == each.split.applied(stage.section)
        assert each.forecast.gpus <= 8
    apart = next(each for each in found if each.split.mode == (False, 0))
    assert apart.forecast.step_s <= now.step_s
    assert [each.forecast.step_s for each in found] == sorted(each.forecast.step_s for each in found)


def test_keys_of_a_split_are_those_that_differ():
    stage, sizes = stage_of()
    best = search(stage, sizes, Offer(H100, 8, 8, ""), TRAFFIC)[0]
    changed = best.split.changes(stage.section)
    assert changed
    assert not best.split.changes(best.stage.section)


def test_nothing_fits_too_few_gpus_and_the_reason_is_said():
    stage, sizes = stage_of()
    offer = Offer(DEVICES["A10G"], 4, 4, "")
    assert search(stage, sizes, offer, TRAFFIC) == []
    assert any("holds about" in finding for finding in findings(stage, sizes, offer))


def test_a_model_of_unknown_size_is_an_error_that_names_it():
    judge = {"role": "objective", "model": "no/such-model", "resources": OWN, "ranks": 2}
    with pytest.raises(CastorError, match="the size of no/such-model is not known on this machine"):
        step(signals={"help": judge})


def test_every_part_has_a_word():
    from castor.planner.describe import WORDS

    assert set(PARTS) <= set(WORDS)
