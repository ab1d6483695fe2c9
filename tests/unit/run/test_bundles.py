"""Which actors share a GPU and which stay on one node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.reservation import Reservation
from castor.config.training import Engine, Resources
from castor.io.errors import CastorError
from castor.run.actors import Actors, Trained
from castor.run.bundles import Bundle, make_bundles, place, require_room


def actors(name, count, gpus, *, trained=False, elastic=False, take_turns=False, **resources):
    holds = (Trained("model", Engine(), count, score=False),) if trained else ()
    return Actors(name, count, Resources(cpus=2, gpus=gpus, **resources), "", holds, elastic, take_turns)


def members(bundles):
    return [bundle.members for bundle in bundles]


def test_ranks_that_train_together_are_on_one_node_as_far_as_it_has_gpus():
    learner = actors("learner", 6, 1, trained=True)
    (bundle,) = make_bundles([learner], 8)
    assert bundle.members == tuple(f"learner-{rank}" for rank in range(6))
    assert bundle.resources == {"GPU": 6, "CPU": 12}
    assert [bundle.gpus for bundle in make_bundles([learner], 4)] == [4, 2]
    assert [bundle.gpus for bundle in make_bundles([actors("scorer", 3, 1)], 8)] == [1, 1, 1]
    elastic = actors("RayTrainWorker", 3, 1, trained=True, elastic=True)
    assert [bundle.gpus for bundle in make_bundles([elastic], 8)] == [1, 1, 1]


def test_a_share_joins_the_fullest_gpu_with_room():
    started = [actors("rollout", 2, 0.65), actors("reference", 2, 0.35), actors("judge", 1, 0.3)]
    assert members(make_bundles(started, 8)) == [
        ("rollout-0", "reference-0"),
        ("rollout-1", "reference-1"),
        ("judge-0",),
    ]


def test_a_shared_gpu_asks_for_what_its_actors_ask_for():
    started = [actors(name, 1, share, custom={"rollout": 0.5}) for name, share in (("a", 0.65), ("b", 0.35))]
    (bundle,) = make_bundles(started, 8)
    assert bundle.resources == {"GPU": 1, "CPU": 4, "rollout": 1}


def test_two_ranks_of_a_training_group_never_share_a_gpu():
    judges = [actors(name, 2, 0.5, trained=True) for name in ("signal-reward", "signal-harm")]
    assert members(make_bundles(judges, 8)) == [
        ("signal-reward-0", "signal-harm-0"),
        ("signal-reward-1", "signal-harm-1"),
    ]
    assert len(make_bundles([actors("scorer", 2, 0.5)], 8)) == 1


def test_groups_that_take_turns_have_at_most_one_of_each_on_a_gpu_and_are_spread():
    groups = [("rollout", 3, False), ("learner", 3, True), ("harm", 2, False), ("help", 1, False)]
    turns = [actors(name, count, 0.2, trained=trained, take_turns=True) for name, count, trained in groups]
    assert members(make_bundles(turns, 8)) == [
        ("rollout-0", "learner-0", "harm-0"),
        ("rollout-1", "learner-1", "harm-1"),
        ("rollout-2", "learner-2", "help-0"),
    ]


def test_engines_with_neighbours_on_their_gpu_are_known():
    rollout, reference, learner = actors("rollout", 2, 0.65), actors("reference", 1, 0.35), actors("learner", 2, 1)
    bundles = make_bundles([rollout, reference, learner], 8)
    reservation = Reservation(None, {name: index for index, bundle in enumerate(bundles) for name in bundle.members})
    assert [reservation.shares(each) for each in (rollout, reference, learner)] == [True, True, False]
    assert not Reservation().shares(rollout)


def test_several_gpus_of_an_actor_come_from_one_node_and_no_gpu_is_no_bundle():
    wide = make_bundles([actors("rollout", 2, 4), actors("owner", 1, 0)], 8)
    assert [(bundle.gpus, bundle.members) for bundle in wide] == [(4, ("rollout-0",)), (4, ("rollout-1",))]
    assert make_bundles([Actors("helper", 1, None, "")], 8) == []


group = st.builds(
    actors,
    st.sampled_from("abcdef"),
    st.integers(1, 9),
    st.sampled_from([0, 0.1, 0.25, 0.33, 0.5, 0.65, 1, 2, 4]),
    trained=st.booleans(),
)


@given(st.lists(group, max_size=5, unique_by=lambda each: each.name), st.sampled_from([1, 2, 4, 8]))
def test_every_actor_on_a_gpu_has_exactly_one_bundle_with_room_for_it(started, gpus_per_node):
    bundles = make_bundles(started, gpus_per_node)
    share = {name: each.resources.gpus for each in started for name in each.rank_names if each.resources.gpus}
    assert sorted(name for bundle in bundles for name in bundle.members) == sorted(share)
    for bundle in bundles:
        shares = [share[name] for name in bundle.members]
        assert sum(shares) <= bundle.gpus + 1e-6
        assert bundle.gpus == 1 or all(each >= 1 for each in shares)
        assert bundle.gpus <= max(gpus_per_node, *shares)


def test_large_bundles_are_placed_first():
    bundles = [Bundle(gpus, 1, {}, ("a",)) for gpus in (1, 1, 4, 2)]
    assert place(bundles, [4, 4]) == [1, 1, 0, 1]
    assert place(bundles, [4, 2]) == [None, None, 0, 1]
    require_room(bundles, "ppo_lag", [4, 4])


def test_too_few_gpus_are_one_sentence():
    (learner,) = make_bundles([actors("learner", 2, 1, trained=True)], 8)
    with pytest.raises(CastorError) as refused:
        require_room([learner], "ppo_lag", [1, 1])
    assert str(refused.value) == (
        "ppo_lag asks for 2 GPUs, and of 1+1 none are left for 2 GPUs of one node for learner-0, learner-1: lower "
        "ranks, workers or gpus, or set ray.hardware to what the cluster has"
    )
