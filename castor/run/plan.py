"""The resolved plan of a run: its stages in order, rounds unrolled, and what every reference stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import castor
from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.demo_model import DemoModel
from castor.config.evaluate import Evaluate
from castor.config.model import STAGE, Model, ModelOption, source_of, stage_of
from castor.config.pipeline import Config
from castor.data.sources.change_marks import input_state
from castor.io.errors import CastorError
from castor.io.files import fingerprint
from castor.model_reference import ModelReference
from castor.run.bundles import Bundle, make_bundles
from castor.run.claim import Inputs
from castor.run.comparison import judged_as_trained
from castor.run.files import RunFiles
from castor.run.rounds import REPEATED, judged_by, judging_group, other_random_numbers, round_policies, unrolled
from castor.run.stages import kinds
from castor.run.stages.stage import Stage


@dataclass(frozen=True)
class Plan:
    """Built once from a config, by `make_plan`, and handed on."""

    config: Config
    files: RunFiles
    stages: Mapping[str, Stage]  # by name, in the order in which they run

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises CastorError when the config has none."""
        if name in self.stages:
            return self.stages[name]
        if self.config.rounds is not None and any(stage.rpartition("/")[2] == name for stage in self.stages):
            raise CastorError(f"{name} is a stage of every round, and rounds run as a whole: use castor pipeline")
        raise CastorError(f"the config has no section for {name!r}: add one, see configs/demo.yaml")

    def of_kind(self, field: str) -> list[Stage]:
        """The stages whose sections stand in one field of the config."""
        return [stage for stage in self.stages.values() if stage.field == field]

    def seed(self, stage: str) -> int:
        """The seed of a stage: that of the config, but another one in every round after the first.

        A later round must not repeat the random choices of the first on other weights, and the unified models of a run
        in rounds, which judge the policies, must not be the very models that the last round was trained against.
        """
        group = other_random_numbers(stage)
        return self.config.seed if group is None else int(fingerprint([self.config.seed, group])[:7], 16)

    def origin(self, option: ModelOption) -> DemoModel | Model:
        """What a model was first made from: the demo model, or a folder or hub id. Expects references that exist."""
        while (name := stage_of(source_of(option))) is not None:
            stage = self.stages[name]
            start = stage.starts_from()
            if start is None:
                assert isinstance(stage.section, DemoModel)
                return stage.section
            option = start
        return option if isinstance(option, Model) else Model(source=option)

    def trusts(self, option: ModelOption) -> bool:
        """Whether code that the model ships may run: the option says so, or that of what the model was made from."""
        if isinstance(option, Model) and option.trust_remote_code:
            return True
        made = self.stages.get(stage_of(source_of(option)) or "")
        start = None if made is None else made.starts_from()
        return start is not None and self.trusts(start)

    def model(self, option: ModelOption) -> ModelReference:
        """The model that an option names. Raises CastorError while the stage that makes it is not finished."""
        source = source_of(option)
        name = stage_of(source)
        if name is None:
            path = Path(source)
            revision = option.revision if isinstance(option, Model) else None
            return ModelReference(str(path.absolute()) if path.is_dir() else source, revision, self.trusts(option))
        folder = self.model_folder(name)
        if not (folder / "config.json").is_file():
            raise CastorError(f"{source} has no model at {folder} yet: run `castor {self.stage(name).command}` first")
        return ModelReference(str(folder), None, self.trusts(option))

    def models(self, stage: Stage) -> dict[str, ModelReference]:
        """The models a stage reads, by the key of its section that names each. Raises as `model`."""
        return {read.key: self.model(read.reference) for read in stage.models()}

    def bundles(self, stage: Stage) -> list[Bundle]:
        """How the actors of a stage lie on GPUs: shown by the dry run, and asked of Ray."""
        return make_bundles(stage.actors(), self.config.ray.gpus_per_node)

    def model_folder(self, stage: str) -> Path:
        """Where the model of a stage lies, or will."""
        return self.stage(stage).model_folder(self.files.stage(stage))

    def source(self, source: DataSource) -> DataSource:
        """The source with the file of rows in place of the stage that writes them."""
        name = stage_of(source.source)
        if name is None:
            return source
        rows = self.files.stage(name).rows
        if not rows.is_file():
            raise CastorError(f"stage {name} has written no rows yet (no file {rows}); run that stage first")
        return source.model_copy(update={"source": str(rows)})

    @cached_property
    def _inputs(self) -> dict[str, Inputs]:
        return {}

    def inputs(self, stage: Stage) -> Inputs:
        """What decides the result of a stage.

        Made when it is first asked for, after the stages before it have run: a stage may read by its path what an
        earlier one writes.
        """
        if stage.name not in self._inputs:
            references = [source_of(read.reference) for read in stage.reads()]
            common = {"seed": self.config.seed, "template": self.config.template, "castor": castor.__version__}
            states = {reference: input_state(reference) for reference in references}
            found = {reference: state for reference, state in states.items() if state is not None}
            read = sorted({name for reference in references if (name := stage_of(reference)) is not None})
            upstream = {name: self.key(self.stages[name]) for name in read}
            self._inputs[stage.name] = Inputs(stage.recipe() | common, found, upstream)
        return self._inputs[stage.name]

    def key(self, stage: Stage) -> str:
        """The fingerprint of what decides the result of a stage."""
        return self.inputs(stage).key

    @property
    def policies(self) -> Mapping[str, ModelOption]:
        """Name and model of each policy that `evaluate` compares; none without it."""
        stages = self.of_kind("evaluate")
        return stages[0].section.policies or {} if stages else {}


def make_plan(config: Config) -> Plan:
    """The plan of a config. Raises CastorError for a name that cannot be that of a stage, and for impossible rounds.

    References are not looked at: `check` does.
    """
    known, stages = kinds(), dict[str, Stage]()
    for name, place, field, section in _sections(config):
        whole = _evaluated(config, section, stages) if isinstance(section, Evaluate) else section
        stages[name] = known[field](name, place, whole)
    return Plan(config, RunFiles(config.run_dir), stages)


_Section = tuple[str, str, str, Section]  # name of a stage, place of its section, field of the config, section


def _sections(config: Config) -> list[_Section]:
    """Every stage in the order in which they run: that of the config's fields, with all rounds in place of one."""
    once = _once(config)
    _check_names(name for name, *_ in once)
    if config.rounds is None:
        return once
    repeated = [(name, name, field, section) for name, (field, section) in unrolled(config).items()]
    before = [each for each in once if each[2] not in (*REPEATED, "evaluate")]
    return [*before, *repeated, *(each for each in once if each[2] == "evaluate")]


def _once(config: Config) -> list[_Section]:
    """The stages of the config, each once."""
    known, found = kinds(), list[_Section]()
    for field in (field for field in Config.model_fields if field in known):
        value = getattr(config, field)
        if isinstance(value, Section):
            found.append((field, field, field, value))
        elif value is not None:
            found += [(name, f"{field}.{name}", field, section) for name, section in value.items()]
    return found


def _check_names(names: Iterable[str]) -> None:
    """Raise CastorError unless each name can be that of a folder of the run, and no two are the same."""
    taken = set(RunFiles.RESERVED)
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in taken:
            raise CastorError(
                f"{name!r} cannot name a folder of the run: use letters, digits, _ and -, and no name that another "
                "stage has"
            )
        taken.add(name)


def _evaluated(config: Config, section: Evaluate, stages: Mapping[str, Stage]) -> Evaluate:
    """`evaluate` with the policies it compares: its own, or sft, dpo and every RLHF run, plain ones first; with the
    judges of the last round in a run with rounds; and with those of the constraints of the compared runs."""
    if config.rounds is not None:
        section = judged_by(section, judging_group(config))
    if section.policies is None:
        runs = round_policies(config) or sorted(config.rlhf, key=lambda name: len(config.rlhf[name].constraints))
        names = (*(["sft"] if config.sft else []), *config.dpo, *runs)
        section = section.model_copy(update={"policies": {name: f"{STAGE}{name}" for name in names}})
    return judged_as_trained(section, {name: stage.section for name, stage in stages.items() if stage.field == "rlhf"})
