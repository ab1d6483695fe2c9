"""The presets for GPUs against the cards that cluster.yaml asks for."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from castor.config.load import load_config
from castor.dry_run.gpus import stage_gpus
from castor.dry_run.memory import GIB
from castor.dry_run.placement import PlacedActors, placement
from castor.run.plan import make_plan

ROOT = Path(__file__).parents[2]
# GPUs of an instance, and the GiB of one that a program can use: a little less than what AWS names
# (aws.amazon.com/ec2/instance-types/p5, /p4 and /g6e: 80 GB HBM3, 80 GB HBM2e, 40 GB HBM2, 48 GB GDDR6)
CARDS = {"p5.48xlarge": (8, 79.0), "p4de.24xlarge": (8, 79.0), "p4d.24xlarge": (8, 39.0), "g6e.12xlarge": (4, 44.0)}
LARGE = ROOT / "configs" / "llama-70b"
SMALL = ROOT / "configs" / "llama-8b"
MORE_NODES = {SMALL: SMALL / "parts" / "two_nodes.yaml", LARGE: LARGE / "parts" / "eight_nodes.yaml"}
PLANS = [
    (preset, nodes)
    for folder, more in MORE_NODES.items()
    for preset in sorted(folder.glob("*.yaml"))
    for nodes in ([], [more])
]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def gpu_nodes(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    types = cluster["available_node_types"]
    return {name: each for name, each in types.items() if each["resources"].get("GPU")}


def hosts(cluster: dict[str, Any], actors: PlacedActors) -> list[dict[str, Any]]:
    """The node types on which an actor may be placed."""
    assert actors.resources is not None
    wanted = {"CPU": actors.resources.cpus, "GPU": actors.resources.gpus, **actors.resources.custom}
    offered = [each["resources"] for each in gpu_nodes(cluster).values()]
    return [
        each
        for each, has in zip(gpu_nodes(cluster).values(), offered, strict=True)
        if all(has.get(name, 0) >= amount for name, amount in wanted.items())
    ]


def test_every_gpu_node_has_the_gpus_it_offers(cluster: dict[str, Any]) -> None:
    for each in gpu_nodes(cluster).values():
        count, _ = CARDS[each["node_config"]["InstanceType"]]
        assert each["resources"]["GPU"] == count


@pytest.mark.parametrize(
    ("preset", "nodes"), PLANS, ids=[f"{p.parent.name}/{p.stem}{'+' if nodes else ''}" for p, nodes in PLANS]
)
def test_every_actor_of_a_preset_lands_on_a_card_that_holds_it(
    cluster: dict[str, Any], preset: Path, nodes: list[Path]
) -> None:
    config = load_config(preset, [str(path) for path in nodes])
    hardware = config.ray.hardware
    assert hardware is not None
    assert hardware.nodes <= sum(each["max_workers"] for each in gpu_nodes(cluster).values())
    plan = make_plan(config)
    stages = placement(plan)
    for name, stage in plan.stages.items():
        gpus = stage_gpus(plan.bundles(stage), stages[name], hardware)
        assert gpus.fits, gpus.verdict(name)
        memories = {each.name: each.memory for each in stages[name]}
        cards = []
        for each in stages[name]:
            if each.resources is None or each.resources.gpus == 0:
                continue
            found = hosts(cluster, each)
            assert found, f"{name}: no node type offers what {each.name} asks for"
            cards += [CARDS[node["node_config"]["InstanceType"]] for node in found]
        for count, memory in cards:
            assert count >= hardware.gpus_per_node
            assert memory >= hardware.gpu_memory_gib
            for gpu in gpus.gpus:
                held = [memories[actor] for actor in gpu.actors]
                assert all(each is not None for each in held)
                assert sum(each.on_card(memory * GIB) for each in held if each) <= memory * GIB, (name, gpu.actors)


def test_a_smaller_card_would_be_noticed(cluster: dict[str, Any]) -> None:
    stages = placement(make_plan(load_config(SMALL / "ppo_lag.yaml")))
    (learner,) = (each for each in stages["ppo_lag"] if each.name == "learner")
    (reference,) = (each for each in stages["ppo_lag"] if each.name == "reference")
    assert learner.memory is not None
    assert reference.memory is not None
    both = learner.memory.on_card(0) + reference.memory.on_card(0)
    assert CARDS["p4d.24xlarge"][1] * GIB < both < CARDS["p4de.24xlarge"][1] * GIB
