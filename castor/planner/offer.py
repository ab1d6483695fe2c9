"""Which GPUs a plan counts with: those named on the command line, of a cluster file, or of the config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from castor.config.cluster import Hardware
from castor.config.pipeline import Config
from castor.io.errors import CastorError
from castor.planner.device import DEVICES, Device, device

DEFAULT_GPU = "H100"
INSTANCES = {
    "p4d.24xlarge": "A100-40GB",
    "p4de.24xlarge": "A100",
    "p5.48xlarge": "H100",
    "p5e.48xlarge": "H200",
    "p5en.48xlarge": "H200",
    "p6-b200.48xlarge": "B200",
    "g5.48xlarge": "A10G",
    "g6e.48xlarge": "L40S",
}
"""GPUs of AWS's instances."""


@dataclass(frozen=True)
class Offer:
    """GPUs to plan with."""

    device: Device
    gpus: int
    gpus_per_node: int
    told: str  # where that comes from, in words

    @property
    def hardware(self) -> Hardware:
        """As a config says it."""
        nodes, per_node = -(-self.gpus // self.gpus_per_node), min(self.gpus, self.gpus_per_node)
        return Hardware(nodes=nodes, gpus_per_node=per_node, gpu_memory_gib=self.device.memory_gib)


@dataclass(frozen=True)
class _NodeType:
    name: str
    gpu: str  # empty: an instance that is not known
    gpus: int  # of a node
    nodes: int


def make_offer(config: Config, needed: int, gpus: int | None, gpu_type: str | None, cluster: Path | None) -> Offer:
    """What to plan with; `needed` is how many GPUs the run of the config reserves.

    Raises CastorError for an unknown GPU, a cluster file that cannot be read, and more GPUs than the cluster has.
    """
    hardware = config.ray.hardware
    if cluster is not None:
        return _of_cluster(cluster, gpus or needed, gpu_type)
    chosen = device(gpu_type or DEFAULT_GPU)
    told = f"{chosen.name} (--gpu-type)" if gpu_type else f"{chosen.name} (by default: --gpu-type says which)"
    if hardware is not None and gpu_type is None:
        chosen = replace(chosen, memory_gib=hardware.gpu_memory_gib)
    count = gpus or (hardware.nodes * hardware.gpus_per_node if hardware else needed)
    if count < 1:
        raise CastorError("the config has no GPUs, and none are named: add --gpus N")
    return Offer(chosen, count, config.ray.gpus_per_node, told)


def _of_cluster(path: Path, wanted: int, gpu_type: str | None) -> Offer:
    types = [each for each in _node_types(path) if gpu_type is None or each.gpu.lower() == gpu_type.lower()]
    if not types:
        what = f"no node type with GPUs of type {gpu_type}" if gpu_type else "no node type with GPUs"
        raise CastorError(f"{path} has {what}: name a GPU that it has, or plan without --cluster")
    unknown = [each.name for each in types if each.gpu not in DEVICES]
    if unknown:
        raise CastorError(
            f"{path}: which GPUs the node type {unknown[0]!r} has is not known from its InstanceType: plan without "
            "--cluster, with --gpus N and --gpu-type"
        )
    slowest = min(types, key=lambda each: DEVICES[each.gpu].flops)
    most = sum(each.gpus * each.nodes for each in types)
    if wanted > most:
        raise CastorError(f"{path} offers at most {most} GPUs, and {wanted} are asked for: raise max_workers in it")
    names = " and ".join(f"{each.nodes} x {each.gpus} {each.gpu}" for each in types)
    told = f"{slowest.gpu}, of up to {names} in {path}" + (", the slower ones" if len(types) > 1 else "")
    return Offer(DEVICES[slowest.gpu], wanted or most, min(each.gpus for each in types), told)


def _node_types(path: Path) -> list[_NodeType]:
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CastorError(f"{path} cannot be read as a cluster file ({error}): give one like cluster.yaml") from None
    found = values.get("available_node_types") if isinstance(values, dict) else None
    if not isinstance(found, dict):
        raise CastorError(f"{path} is no cluster file: it has no available_node_types, see cluster.yaml")
    most = values.get("max_workers", 0)
    result = []
    for name, each in found.items():
        gpus = int((each.get("resources") or {}).get("GPU", 0))
        if gpus:
            instance = (each.get("node_config") or {}).get("InstanceType", "")
            result.append(_NodeType(name, INSTANCES.get(instance, ""), gpus, int(each.get("max_workers", most))))
    return result
