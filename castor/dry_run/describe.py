"""What a config would do, without doing it: `castor pipeline CONFIG --dry-run`."""

from __future__ import annotations

import math
from typing import Literal

from rich.table import Table

from castor.config.differences import differences
from castor.config.load import dump_config
from castor.config.model import source_of, stage_of
from castor.config.pipeline import Config
from castor.dry_run.fit import card_findings
from castor.dry_run.gpus import stage_gpus
from castor.dry_run.memory import GIB, Memory
from castor.dry_run.placement import PlacedActors, cluster_cpus, placement, stored, totals
from castor.dry_run.text import heading, table_of, text
from castor.models.head_kind import head_kind
from castor.run.bundles import Bundle
from castor.run.check import check
from castor.run.plan import Plan
from castor.run.stages.rlhf import RLHFStage
from castor.run.stages.stage import Stage
from castor.run.stages.supervised import SupervisedStage

MIB = 1 << 20
Unit = Literal["MiB", "GiB"]
MEMORY_NOTES = """\
Estimates of the peak of one actor; a total is over all actors of the stage. Weights, gradients and optimiser states \
(AdamW's two float32 moments, and DeepSpeed's float32 copy of the weights where it keeps one) are counted from \
DeepSpeed's sources, after ZeRO sharding; what is offloaded is under `host`. `work` is rough: the larger of a backward \
pass (activations and logits of micro_batch_tokens tokens, reduce buckets, gathered weights) and the optimiser's own \
(float32 gradients). `GPU` adds 5 % for fragmentation and 0.5 GiB of CUDA, or 1.5 GiB with NCCL. `proc.` is what \
imports cost on a node: about 0.5 GiB with torch and DeepSpeed, 0.9 GiB with vLLM, 0.3 GiB else. The driver (about \
0.5 GiB) and Ray's own processes (about 0.5 GiB) come on top."""

# Ray's own defaults (RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION, RAY_object_spilling_threshold)
STORE_SHARE, SPILLS_AT = 0.3, 0.8
SMALLER = "; less is taken with a lower micro_batch_tokens, with gradient_checkpointing, or with a LoRA policy"


def describe(plan: Plan, full: bool = False) -> str:
    """What of the config differs from the defaults, the stages and what they read, the placement of every actor, and
    estimated memory; `full`: also the resolved config.

    Starts nothing and reads no rows. Raises CastorError where `check` does.
    """
    check(plan)
    config, actors = plan.config, placement(plan)
    unit = _unit(actors)
    return "\n".join(
        [
            heading("Config: what differs from the defaults (all of it: --full)"),
            text(_differences_table(config)),
            *([heading("Config, with every default"), dump_config(config)] if full else []),
            heading("Stages, in order"),
            text(_stages_table(plan)),
            heading("Placement: what each actor reserves"),
            text(_placement_table(actors)),
            text(*_fits(config, actors)),
            heading(f"Memory: what one actor is estimated to hold, in {unit}"),
            text(memory_table(actors, unit)),
            text(*_memory_totals(config, actors)),
            *_gpu_parts(plan, actors),
            text(MEMORY_NOTES),
        ]
    )


def _differences_table(config: Config) -> Table:
    table, section = table_of(("key", "value", "default"), ()), ""
    for each in differences(config):
        own, _, rest = each.key.partition(".")
        if section and rest and own != section:
            table.add_section()
        section = own
        table.add_row(each.key, each.value, each.default)
    return table


def _stages_table(plan: Plan) -> Table:
    table = table_of(("stage", "reads", "from"), ())
    for name, stage in plan.stages.items():
        for number, read in enumerate(stage.reads()):
            note = _head_note(plan, stage) if read.key == "model" else ""
            table.add_row("" if number else name, read.key, f"{source_of(read.reference)}{note}")
        if isinstance(stage, RLHFStage):
            for constraint, limit in stage.limits().items():
                table.add_row("", f"limit of {constraint}", limit)
        table.add_section()
    return table


def _head_note(plan: Plan, stage: Stage) -> str:
    """Whether the head of what a stage starts from goes on; empty where it has none, or its files are elsewhere."""
    if not isinstance(stage, SupervisedStage) or stage.head is None:
        return ""
    name = stage_of(source_of(stage.section.model))
    if name is None:
        found = head_kind(plan.model(stage.section.model))
    else:
        made = plan.stages[name]
        found = made.head if isinstance(made, SupervisedStage) else None
    if found is None or found == "unknown":
        return ""
    return " (its head goes on)" if found == stage.head else f" (a fresh head: its own is of kind {found})"


def _placement_table(stages: dict[str, list[PlacedActors]]) -> Table:
    numbers = ("n", "CPUs", "GPUs", "threads")
    table = table_of(("stage", "actor", "n", "CPUs", "GPUs", "custom", "threads", "what it does"), numbers)
    for stage, actors in stages.items():
        if not actors:
            table.add_row(stage, "(driver)", "", "", "", "", "", "no actors")
        for number, each in enumerate(actors):
            asked = each.resources
            table.add_row(
                "" if number else stage,
                each.name,
                str(each.count),
                f"{asked.cpus:g}" if asked else "0",
                f"{asked.gpus:g}" if asked else "0",
                _custom(asked.custom) if asked else "",
                str(asked.threads) if asked else "",
                each.work,
            )
        if actors:
            total = totals(actors)
            count = str(sum(each.count for each in actors))
            table.add_row("", "total", count, f"{total.cpus:g}", f"{total.gpus:g}", _custom(total.custom), "", "")
        table.add_section()
    return table


def _custom(amounts: dict[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in amounts.items())


def _fits(config: Config, stages: dict[str, list[PlacedActors]]) -> list[str]:
    """One line on each kind of resource: a stage runs alone, so each must fit by itself."""
    needs = {stage: totals(actors) for stage, actors in stages.items() if actors}
    if not needs:
        return ["No stage starts actors."]
    cpus, most = cluster_cpus(config.ray), max(need.cpus for need in needs.values())
    lines = []
    if cpus is None:
        lines.append(f"CPUs: a running cluster would be joined; it must offer {most:g} (cannot be seen from here).")
    else:
        short = [f"{stage} ({need.cpus:g})" for stage, need in needs.items() if need.cpus > cpus]
        verdict = f"every stage fits (the largest reserves {most:g})."
        if short:
            verdict = f"TOO FEW for {', '.join(short)}: lower workers or resources.cpus, or raise ray.num_cpus."
        lines.append(f"CPUs: the cluster that would be started here has {cpus}; {verdict}")
    gpus = max(need.gpus for need in needs.values())
    lines.append(
        f"GPUs: the cluster must offer {gpus:g}, which cannot be seen from here." if gpus else "GPUs: none are needed."
    )
    names = sorted({name for need in needs.values() for name in need.custom})
    custom = {name: max(need.custom.get(name, 0) for need in needs.values()) for name in names}
    if custom:
        where = "which a cluster started here does not" if cpus is not None else "which cannot be seen from here"
        lines.append(f"Custom resources: the cluster must offer {_custom(custom)}, {where}.")
    return [*lines, ""]


def _unit(stages: dict[str, list[PlacedActors]]) -> Unit:
    """GiB where some actor holds more than a few of them, so that the table keeps to its width."""
    memories = [each.memory for actors in stages.values() for each in actors if each.memory is not None]
    return "GiB" if any(memory.process + memory.model > 8 * GIB for memory in memories) else "MiB"


def memory_table(stages: dict[str, list[PlacedActors]], unit: Unit) -> Table:
    """A row for every kind of actor of some stages, and a total of each stage."""
    numbers = ("n", "params", "weights", "frozen", "grads", "optim.", "work", "KV", "proc.", "host", "GPU")
    table = table_of(("stage", "actor", *numbers), numbers)
    for stage, actors in stages.items():
        for number, each in enumerate(actors):
            params = "" if each.resources is None else _parameters(each.parameters)
            row = ["?"] * 9 if each.memory is None else _memory_cells(each.memory, unit)
            table.add_row("" if number else stage, each.name, str(each.count), params, *row)
        if actors:
            known = [(each.count, each.memory) for each in actors if each.memory is not None]
            more = " + ?" if len(known) < len(actors) else ""
            host, gpu = sum(n * m.host for n, m in known), sum(n * m.gpu for n, m in known)
            count = str(sum(each.count for each in actors))
            table.add_row("", "total", count, *[""] * 8, _amount(host, unit) + more, _amount(gpu, unit))
            table.add_section()
    return table


def _memory_cells(memory: Memory, unit: Unit) -> list[str]:
    share = memory.gpu_share
    numbers = (memory.weights, memory.frozen, memory.gradients, memory.optimizer, memory.working)
    return [
        *(_amount(number, unit) for number in numbers),
        "rest" if memory.takes_rest else _amount(memory.kv_cache, unit),
        _amount(memory.process, unit),
        _amount(memory.host, unit),
        _amount(memory.gpu, unit) if share is None else f"{share:.0%}",
    ]


def _amount(size: float, unit: Unit) -> str:
    """In `unit`; empty for nothing."""
    if not size:
        return ""
    return f"{size / GIB:,.1f}" if unit == "GiB" else f"{size / MIB:,.1f}"


def _memory_totals(config: Config, stages: dict[str, list[PlacedActors]]) -> list[str]:
    import psutil

    lines = []
    groups = [each for actors in stages.values() for each in actors]
    stores = {stage: stored(actors) for stage, actors in stages.items() if actors}
    hosts = {
        stage: sum(each.count * each.memory.host for each in stages[stage] if each.memory) + store
        for stage, store in stores.items()
    }
    if hosts and cluster_cpus(config.ray) is not None:
        stage, machine = max(hosts, key=lambda name: hosts[name]), psutil.virtual_memory().total
        fits = hosts[stage] + GIB <= machine
        share = f", {_size(stores[stage])} of it for weights on their way to engines," if stores[stage] else ""
        lines.append(
            f"The largest stage, {stage}, takes about {_size(hosts[stage])}{share} on this machine; "
            f"{'it' if fits else 'TOO MUCH for it: it'} has {_size(machine)}{'' if fits else SMALLER}."
        )
        given, largest = config.ray.object_store_mib, max(stores.values())
        store = given * MIB if given else STORE_SHARE * psutil.virtual_memory().available
        if largest > SPILLS_AT * store:
            lines.append(
                f"Weights on their way to engines take up to {_size(largest)}, and Ray moves to disk what fills more "
                f"than {SPILLS_AT:.0%} of its object store of {_size(store)}: give ray.object_store_mib at least "
                f"{math.ceil(largest / SPILLS_AT / MIB)}."
            )
    if any(each.memory is None for each in groups):
        lines.append(
            "unknown (hub id): a model that cannot be read offline. Its memory, shown as ?, is not in the totals."
        )
    if any(each.memory and each.memory.gpu_share is not None for each in groups):
        lines.append(
            "A percentage under GPU is the share of each GPU vLLM takes (KV: the rest of it). It is not in the totals."
        )
    if config.model is not None:
        lines.append(
            f"The demo model counts with all {config.model.vocab_size:,} entries of its vocabulary: a corpus of fewer "
            "words makes it smaller."
        )
    return [*lines, ""]


def _gpu_parts(plan: Plan, stages: dict[str, list[PlacedActors]]) -> list[str]:
    """How the actors lie on GPUs; where the config knows the cluster, also what each GPU would hold, and whether that
    fits. Nothing where no actor has a GPU."""
    bundles = {name: plan.bundles(stage) for name, stage in plan.stages.items()}
    hardware = plan.config.ray.hardware
    if not any(bundles.values()) and hardware is None:
        return []
    parts = [
        heading("GPUs: each line is reserved on one node, and all lines of a stage together"),
        text(_bundles_table(bundles)),
    ]
    if hardware is None:
        return parts
    found = {name: stage_gpus(bundles[name], stages[name], hardware) for name in stages}
    table = table_of(("stage", "GPUs", "actors on each", "GiB"), ("GPUs", "GiB"))
    for stage, gpus in found.items():
        for number, (count, gpu) in enumerate(gpus.groups()):
            held = "?" if gpu.used is None else f"{gpu.used / GIB:,.1f}"
            table.add_row("" if number else stage, str(count), " + ".join(gpu.actors), held)
        table.add_section()
    size = f"{hardware.nodes} x {hardware.gpus_per_node} GPUs of {hardware.gpu_memory_gib:g} GiB"
    return [
        *parts,
        heading(f"GPU memory on {size}"),
        text(table),
        text(*(gpus.verdict(stage) for stage, gpus in found.items()), *card_findings(stages, hardware), ""),
    ]


def _bundles_table(stages: dict[str, list[Bundle]]) -> Table:
    table = table_of(("stage", "GPUs", "CPUs", "custom", "actors"), ("GPUs", "CPUs"))
    for stage, bundles in stages.items():
        for number, bundle in enumerate(bundles):
            cells = (str(bundle.gpus), f"{bundle.cpus:g}", _custom(dict(bundle.custom)), ", ".join(bundle.members))
            table.add_row("" if number else stage, *cells)
        if bundles:
            table.add_section()
    return table


def _parameters(count: int | None) -> str:
    if count is None:
        return "unknown"
    if count == 0:
        return ""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
