"""Where Ray runs, and what the cluster offers."""

import os

from pydantic import Field

from castor.config.base import Section

DETERMINISTIC = "CASTOR_DETERMINISTIC"  # environment variable that tells the processes of a run
FLOAT32_PRODUCTS = "CASTOR_FLOAT32_PRODUCTS"  # ... and this one, who multiplies on CPUs: castor/models/onednn.py


class Hardware(Section):
    """What a cluster offers: ranks that train together stay on one node, and `--dry-run` says whether the plan fits."""

    nodes: int = Field(1, ge=1, description="nodes with GPUs")
    gpus_per_node: int = Field(8, ge=1, description="GPUs of each of them")
    gpu_memory_gib: float = Field(79.0, gt=0, description="memory of one GPU that programs can use, GiB")


class RayCluster(Section):
    """Where Ray runs."""

    address: str | None = Field(
        None,
        description="of a running cluster; by default the one this process belongs to (RAY_ADDRESS), else "
        "one is started",
    )
    num_cpus: int | None = Field(None, ge=1, description="of a cluster that is started here; default: all cores")
    hardware: Hardware | None = Field(
        None, description="GPUs of the cluster; null: unknown, and a node is taken to have 8 of them"
    )
    object_store_mib: int | None = Field(
        None,
        ge=80,
        description="object store of a cluster that is started here, MiB, for experience and for weights on their way "
        "to engines; what fills more than 80% of it goes to disk. Default: up to 30% of the memory that is free, as it "
        "is needed",
    )
    deterministic: bool = Field(
        False,
        description="on GPUs: the same run gives the same numbers, by slower kernels whose sums depend neither on "
        "timing nor on what else is in the batch (docs/architecture.md)",
    )

    @property
    def gpus_per_node(self) -> int:
        """GPUs of one node."""
        return (self.hardware or Hardware()).gpus_per_node

    @property
    def started_here(self) -> bool:
        """Whether a cluster is started for the run; else a running one is joined, which may grow."""
        return not (self.address or os.environ.get("RAY_ADDRESS"))
