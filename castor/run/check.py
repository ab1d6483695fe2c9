"""What can be wrong between the sections of a config, found before anything starts. Free of torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from castor.config.base import Section
from castor.config.collect import Collect
from castor.config.data import SYNTHETIC, DataSource, is_function, mixture_finding
from castor.config.demo_model import DemoModel
from castor.config.dpo import DPO
from castor.config.evaluate import Evaluate
from castor.config.moderation import Moderation
from castor.config.pipeline import Config
from castor.config.preference import Cost, Reward
from castor.config.rlhf import RLHF, Rollout
from castor.config.signal import Signal
from castor.config.supervised import SFT, Supervised
from castor.data.sources.file_names import is_data_file, is_url
from castor.data.sources.known_sets import unknown_name
from castor.io.errors import CastorError
from castor.run.folder import STAGE
from castor.run.rounds import judged_by, judging_group, round_policies, unrolled

Kind = Literal["language model", "reward model", "cost model", "moderation model", "rows"]
LANGUAGE_MODEL: frozenset[Kind] = frozenset({"language model"})
ANY_MODEL: frozenset[Kind] = frozenset({"language model", "reward model", "cost model", "moderation model"})
ROWS: frozenset[Kind] = frozenset({"rows"})
MADE: dict[type[Section], str] = {  # a `Kind`, or words for something nobody reads; all others: language model
    Collect: "rows",
    Reward: "reward model",
    Cost: "cost model",
    Moderation: "moderation model",
    Evaluate: "a report",
}
FIXED_STAGES = ("model", "sft", "collect", "reward", "cost")


@dataclass(frozen=True)
class Read:
    """One thing a stage reads: at `key` of the config stands `reference`, which must be one of `kinds`."""

    stage: str
    key: str
    reference: str
    kinds: frozenset[Kind]


def check(config: Config) -> None:
    """Raise CastorError, one line per finding, when sections contradict each other.

    Looked at: every `stage:NAME` (is there such a section, does it run earlier, does it make the right thing), every
    local path, contexts (prompt + response against the context of the model that reads them), and tensor parallelism
    against the GPUs of an actor. What is only known on the cluster or the hub is not looked at.
    """
    if config.evaluate is not None and not evaluated(config):
        raise CastorError(
            "evaluate has no policy to compare: add an sft section, a dpo stage, an rlhf run, or evaluate.policies"
        )
    findings = [finding for read in reads(config) if (finding := _reference_finding(config, read))]
    findings = findings or [*_mixture_findings(config), *_context_findings(config), *_parallel_findings(config)]
    if findings:
        raise CastorError("\n".join(dict.fromkeys(findings)))


def stage_sections(config: Config) -> dict[str, Section]:
    """The sections that are stages of this run, by stage name, in the order in which they run."""
    fixed = {name: section for name in FIXED_STAGES if (section := getattr(config, name)) is not None}
    last: dict[str, Section] = {} if config.evaluate is None else {"evaluate": config.evaluate}
    if config.rounds is not None:
        once = {name: section for name, section in fixed.items() if name in ("model", "sft")}
        last = {name: judged_by(section, judging_group(config)) for name, section in last.items()}
        return {**once, **config.moderation, **config.dpo, **unrolled(config), **last}
    return {**fixed, **config.moderation, **config.dpo, **config.rlhf, **last}


def section_key(config: Config, stage: str) -> str:
    """Where the section of a stage stands in the config file: `sft`, `moderation.qa`, `rlhf.ppo`."""
    groups: dict[str, Collection[str]] = {"moderation": config.moderation, "dpo": config.dpo, "rlhf": config.rlhf}
    return next((f"{group}.{stage}" for group, names in groups.items() if stage in names), stage)


def evaluated(config: Config) -> Mapping[str, str]:
    """Name and model of each policy `evaluate` compares: the config's, or sft, dpo and every run, plain ones first."""
    if config.evaluate is None:
        return {}
    if config.evaluate.policies is not None:
        return config.evaluate.policies
    runs = round_policies(config) or sorted(config.rlhf, key=lambda name: len(config.rlhf[name].constraints))
    return {name: f"{STAGE}{name}" for name in (*(["sft"] if config.sft else []), *config.dpo, *runs)}


def reads(config: Config) -> list[Read]:
    """Everything the stages read, in their order."""
    return [
        Read(stage, f"{section_key(config, stage)}.{key}", reference, kinds)
        for stage, section in stage_sections(config).items()
        for key, reference, kinds in _section_reads(config, section)
    ]


def origin(config: Config, reference: str) -> DemoModel | str:
    """What the model behind `reference` was first made from: the demo model, or a folder or hub id.

    Expects a config whose references `check` has found good.
    """
    sections = stage_sections(config)
    while reference.startswith(STAGE):
        section = sections[reference.removeprefix(STAGE)]
        if isinstance(section, DemoModel):
            return section
        if isinstance(section, RLHF):
            reference = section.policy.model
        else:
            assert isinstance(section, Supervised)
            reference = section.model
    return reference


def _section_reads(config: Config, section: Section) -> Iterator[tuple[str, str, frozenset[Kind]]]:
    if isinstance(section, DemoModel):
        yield from _data_reads(section.data)
    elif isinstance(section, Supervised):
        yield "model", section.model, LANGUAGE_MODEL if isinstance(section, SFT | DPO) else ANY_MODEL
        if isinstance(section, DPO) and section.reference is not None:
            yield "reference", section.reference, LANGUAGE_MODEL
        yield from _data_reads(section.data)
    elif isinstance(section, Collect):
        yield "policy", section.policy, LANGUAGE_MODEL
        yield "prompts.source", section.prompts.source, ROWS
    elif isinstance(section, RLHF):
        yield "policy.model", section.policy.model, LANGUAGE_MODEL
        for name, signal in section.signals.items():
            if signal.model is not None:
                yield f"signals.{name}.model", signal.model, frozenset({_kind_of_signal(signal)})
            if signal.critic_model is not None and section.has_critic(name):
                yield f"signals.{name}.critic_model", signal.critic_model, ANY_MODEL
        yield "prompts.source", section.prompts.source, ROWS
        if section.learner.ptx is not None:
            yield "learner.ptx.data.source", section.learner.ptx.data.source, ROWS
    elif isinstance(section, Evaluate):
        for name, reference in evaluated(config).items():
            yield f"policies.{name}", reference, LANGUAGE_MODEL
        yield "reward", section.reward, frozenset({"reward model"})
        yield "cost", section.cost, frozenset({"moderation model" if section.cost_classifier else "cost model"})
        yield "prompts.source", section.prompts.source, ROWS


def _kind_of_signal(signal: Signal) -> Kind:
    if signal.classifier is not None:
        return "moderation model"
    return "reward model" if signal.role == "objective" else "cost model"


def _data_reads(sources: list[DataSource]) -> Iterator[tuple[str, str, frozenset[Kind]]]:
    for number, source in enumerate(sources):
        yield f"data.{number}.source" if len(sources) > 1 else "data.source", source.source, ROWS


def _reference_finding(config: Config, read: Read) -> str | None:
    if not read.reference.startswith(STAGE):
        return _path_finding(config, read)
    name, order = read.reference.removeprefix(STAGE), list(stage_sections(config))
    place = f"{read.key}: {read.reference}"
    if name not in order:
        near = difflib.get_close_matches(name, order, n=1, cutoff=0.5)
        hint = f"did you mean {STAGE}{near[0]}?" if near else "add the section, or give a folder"
        return f"{place} names a stage, but the config has no section {name!r}; {hint}"
    if order.index(name) >= order.index(read.stage):
        return f"{place} runs {'later' if name != read.stage else 'in this very stage'}: name an earlier stage"
    made = MADE.get(type(stage_sections(config)[name]), "language model")
    if made not in read.kinds:
        wanted = "a model" if read.kinds == ANY_MODEL else " or ".join(sorted(read.kinds))
        return f"{place} is not what is read here: needed {wanted}, got {made}"
    return None


def _path_finding(config: Config, read: Read) -> str | None:
    """A local path, or a data set, that is not there. Paths in the run's own folder may be made by the run itself."""
    text, path, rows = read.reference, Path(read.reference).expanduser(), read.kinds == ROWS
    if path.exists() or (rows and (text == SYNTHETIC or is_url(text) or is_function(text))):
        return None
    names_a_path = text.startswith((".", "/", "~")) or text.count("/") > 1
    if names_a_path or (rows and is_data_file(text)):
        made_here = path.absolute().is_relative_to(config.run_dir.absolute())
        return None if made_here else f"{read.key}: there is no {text}: fix the path"
    finding = unknown_name(text) if rows else None
    return finding and f"{read.key}: {finding}"


def _mixture_findings(config: Config) -> Iterator[str]:
    for stage, section in stage_sections(config).items():
        sources = getattr(section, "data", None)
        finding = mixture_finding(sources) if isinstance(sources, list) else None
        if finding is not None:
            yield f"{section_key(config, stage)}.data: {finding}"


def _context_findings(config: Config) -> Iterator[str]:
    for read in reads(config):
        if read.kinds == ROWS:
            continue
        section, key = stage_sections(config)[read.stage], section_key(config, read.stage)
        limit = context_of(origin(config, read.reference))
        if limit is None:
            continue
        if isinstance(section, Supervised) and section.max_length > limit:
            yield (
                f"{key}.max_length {section.max_length} exceeds the context of {limit} tokens of {read.reference}: "
                "lower it"
            )
        if isinstance(section, Collect | RLHF | Evaluate):
            rollout = section.rollout
            if rollout.max_prompt_tokens + rollout.max_new_tokens > limit:
                yield (
                    f"{key}.rollout: max_prompt_tokens {rollout.max_prompt_tokens} + max_new_tokens "
                    f"{rollout.max_new_tokens} exceed the context of {limit} tokens of {read.reference}: "
                    "lower one of them"
                )


def context_of(model: DemoModel | str) -> int | None:
    """Longest sequence of a model in tokens; None for a hub id, or where its config.json does not say."""
    if isinstance(model, DemoModel):
        return model.max_position_embeddings
    path = Path(model).expanduser() / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CastorError(f"{path} is not valid JSON ({error}): fetch the model again") from error
    limit = values.get("max_position_embeddings") if isinstance(values, dict) else None
    return limit if isinstance(limit, int) else None


def _parallel_findings(config: Config) -> Iterator[str]:
    for stage, section in stage_sections(config).items():
        rollout: Rollout | None = getattr(section, "rollout", None)
        if rollout is not None and rollout.tensor_parallel_size > max(1, rollout.resources.gpus):
            yield (
                f"{section_key(config, stage)}.rollout: tensor_parallel_size {rollout.tensor_parallel_size} needs as "
                f"many GPUs in one worker, and resources.gpus is {rollout.resources.gpus:g}: make them agree"
            )
