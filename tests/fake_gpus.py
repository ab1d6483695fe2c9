"""Nodes of eight GPUs that only Ray believes in: what it assigns to the actors of real configs. Run as a program.

`python -m tests.fake_gpus NODES OUTPUT CONFIG...` reserves the GPUs of every stage of all configs, equal bundles once,
and starts actors of one without their models. OUTPUT gets, as JSON, where each bundle and each actor came to lie. The
workers of the first config's reward stage are Ray Train's own. On one node, an actor is also left from stage to stage.
"""

import json
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from actors.cluster import START_ATTEMPTS
from actors.device import local_rank, require_gpu
from actors.group import get, has_died, node_id
from actors.handover import Handover, Wanted
from actors.reservation import reserve
from castor.config.load import load_config
from castor.io.errors import CastorError
from castor.run.plan import make_plan
from trainers.supervised.driver import scaling

VARIANTS = {"1": ([], ["configs/llama-8b/parts/colocated.yaml"]), "2": (["configs/llama-8b/parts/two_nodes.yaml"],)}
STARTED = "multi_constraint/multi_constraint"


@ray.remote
class Probe:
    """An actor that says which GPUs it was given."""

    def place(self):
        return place()

    def refusal(self):
        """What an actor says whose GPU torch cannot use."""
        try:
            require_gpu()
        except CastorError as error:
            return str(error)


def place():
    """Node, the GPUs this process sees, and the number of its own among them."""
    return {"node": node_id(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "local_rank": local_rank()}


def placed(stage, bundles, start):
    """The node of each bundle of a stage; with `start` also where each of its actors is."""
    with reserve(bundles, stage.name) as reservation:
        nodes = placement_group_table(reservation.group)["bundles_to_node_id"] if reservation.group else {}
        where = [{"gpus": b.gpus, "node": nodes[i], "members": b.members} for i, b in enumerate(bundles)]
        found = {"bundles": where, "actors": {}}
        if start and reservation.group:
            on_gpus = [each for each in stage.actors() if each.resources and each.resources.gpus]
            handles = {
                name: Probe.options(**reservation.options(each, number)).remote()
                for each in on_gpus
                for number, name in enumerate(each.rank_names)
            }
            places = get([handle.place.remote() for handle in handles.values()], 120, "the probes")
            found["actors"] = dict(zip(handles, places, strict=True))
            found["refusal"] = get(next(iter(handles.values())).refusal.remote(), 120, "a probe")
        return found


def handed_over(stage, bundles):
    """A worker that is left to a stage that wants the same, and by that one to a stage that wants nothing: where it is
    in the two, in which placement group, and what became of both.
    """
    handover, wanted, found = Handover(), Wanted(stage.actor("rollout"), bundles), []
    for _ in range(2):
        handover.begin(wanted, wanted)
        with reserve(bundles, stage.name, None, handover) as reservation:
            taken = list(handover.take("model"))
            workers = taken or [Probe.options(**reservation.options(wanted.workers, 0)).remote()]
            place = get(workers[0].place.remote(), 120, "the probe")
            found.append({"new": not taken, "group": reservation.group.id.hex(), **place})
            handover.leave(workers, "model", reservation.group)
    handover.begin(Wanted(None, []), None)
    up = workers[0].__ray_ready__.remote()
    ray.wait([up], timeout=60)
    return found, {"died": has_died(up), "group": placement_group_table(reservation.group)["state"]}


def tell(config):
    """One worker of Ray Train."""
    rank = ray.train.get_context().get_world_rank()
    Path(config["folder"], f"{rank}.json").write_text(json.dumps(place()))


def trained(stage, bundles, folder):
    """Where Ray Train's workers of a supervised stage are, by rank."""
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder.mkdir()
    TorchTrainer(
        tell,
        train_loop_config={"folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling(stage, bundles),
        run_config=RunConfig(storage_path=str(folder / "ray")),
    ).fit()
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def started(nodes):
    """A cluster of nodes with eight GPUs. Ray gives a node 30 s to come up, which a busy machine may miss once."""
    offer = {"num_gpus": 8, "num_cpus": 96}
    for attempt in range(START_ATTEMPTS):
        cluster = Cluster()
        try:
            cluster.add_node(include_dashboard=False, **offer)
            for _ in range(nodes - 1):
                cluster.add_node(**offer)
        except Exception:  # what Ray raises here is bare
            cluster.shutdown()
            if attempt == START_ATTEMPTS - 1:
                raise
        else:
            return cluster
    raise AssertionError


def main(nodes, output, *configs):
    """The actors of the stage `STARTED` are started; Ray Train's workers on one node."""
    cluster = started(int(nodes))
    ray.init(address=cluster.address, log_to_driver=False)
    found, asked = {}, {}
    for number, variant in enumerate(VARIANTS[nodes]):
        for path in configs:
            plan = make_plan(load_config(Path(path), variant))
            for stage in plan.stages.values():
                name, bundles = f"{Path(path).stem}/{stage.name}", plan.bundles(stage)
                start = number == 0 and name == STARTED
                key = name if start else str(bundles)
                if key not in asked:
                    asked[key] = placed(stage, bundles, start)
                found[f"{name}/{number}"] = asked[key]
    workers, left = {}, []
    if int(nodes) == 1:
        plan = make_plan(load_config(Path(configs[0])))
        (stage,) = plan.of_kind("rlhf")
        left = handed_over(stage, plan.bundles(stage))
        plan = make_plan(load_config(Path(configs[0]), ["reward.workers=2"]))
        stage = plan.stage("reward")
        workers = trained(stage.section, plan.bundles(stage), Path(output).with_suffix(".train"))
    Path(output).write_text(json.dumps({"stages": found, "train": workers, "left": left}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
