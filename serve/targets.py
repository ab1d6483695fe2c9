"""What of a run is served, and where: everything that can be refused before a process is started."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from castor.config.evaluate import Evaluate
from castor.config.model import ModelOption, source_of, stage_of
from castor.config.rlhf import RLHF
from castor.config.serve import Serve
from castor.config.signal import Classifier
from castor.io.errors import CastorError
from castor.io.files import read_json
from castor.model_reference import ModelReference
from castor.run.plan import Plan
from castor.run.stages.stage import Stage
from castor.run.survey import plan_of_run


@dataclass(frozen=True)
class Judge:
    """A model that scores: the reward or the cost model, or with `classifier` a moderation model as the latter."""

    name: str  # of its stage, or the model's own
    model: ModelReference
    classifier: Classifier | None = None


@dataclass(frozen=True)
class Targets:
    """What is served."""

    name: str  # of the policy: that of its stage
    policy: ModelReference
    max_model_len: int
    template: str  # prompt format the run was trained with
    judges: dict[str, Judge]  # cost and reward, as far as the run has them; without a cost there is no /v1/score


def resolve(config: Serve) -> Targets:
    """The policy and its score models, by the run's own config. Raises CastorError for a run that cannot be served."""
    plan = plan_of_run(config.run_dir)
    stage = _policy(plan, config.policy)
    policy = plan.model(f"stage:{stage.name}")
    longest = _max_model_len(config, stage.name, Path(policy.name))
    return Targets(stage.name, policy, longest, plan.config.template, _judges(plan, stage, config))


def require_free_port(host: str, port: int) -> None:
    """Raise CastorError unless a server could listen there now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # a connection of a former server that still lingers does not keep the new one from listening
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CastorError(
                f"port {port} on {host} is in use: stop the program that listens there, or choose another port"
            ) from None
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise CastorError(f"cannot listen on {host} port {port} ({reason}): choose another host or port") from None


def _policy(plan: Plan, wanted: str | None) -> Stage:
    """The stage whose policy is served: the one that is wanted, or the default."""
    policies = {stage.name: stage for stage in plan.stages.values() if stage.makes == "language model"}
    finished = {name: stage for name, stage in policies.items() if _is_model(plan.model_folder(name))}
    choices = f"there is {', '.join(finished)}" if finished else "there is none yet"
    run = plan.files.folder
    if wanted is None:
        return _default(finished, run, choices)
    if wanted in finished:
        return finished[wanted]
    if wanted in policies:
        raise CastorError(f"{run} holds no finished policy {wanted!r}: run the pipeline to its end; {choices}")
    if wanted in plan.stages:
        raise CastorError(f"stage {wanted} makes {plan.stages[wanted].makes}, not a policy: {choices}")
    raise CastorError(f"{run} has no policy {wanted!r}: {choices}")


def _default(finished: dict[str, Stage], run: Path, choices: str) -> Stage:
    """The policy of the last round, or of the only RLHF run; of several, of the only one with constraints; else SFT."""
    runs = [stage for stage in finished.values() if stage.field == "rlhf"]
    rounds = [stage for stage in runs if "/" in stage.name]
    if rounds:
        return rounds[-1]
    constrained = [stage for stage in runs if stage.section.constraints]
    for candidates in (runs, constrained):
        if len(candidates) == 1:
            return candidates[0]
    if runs:
        raise CastorError(f"{run} holds several policies: choose one with policy=NAME; {choices}")
    if "sft" not in finished:
        raise CastorError(f"{run} holds no finished policy: run the pipeline to its end; {choices}")
    return finished["sft"]


def _judges(plan: Plan, policy: Stage, config: Serve) -> dict[str, Judge]:
    """The score models that belong to a policy, those that are finished; `config.cost` may name another stage's."""
    options = _judges_of(plan, policy)
    if config.cost is not None:
        if config.cost not in plan.stages:
            raise CastorError(f"{plan.files.folder} has no stage {config.cost!r}, whose cost model was to be served")
        options["cost"] = f"stage:{config.cost}", config.cost_classifier
    elif config.cost_classifier is not None:
        raise CastorError("cost_classifier makes a cost of a moderation model: set cost to the name of its stage")
    judges = {}
    for kind, (option, classifier) in options.items():
        name = stage_of(source_of(option))
        if name is not None and not _is_model(plan.model_folder(name)):
            if not (kind == "cost" and config.cost) and not plan.model_folder(name).is_dir():
                continue
            raise CastorError(f"{plan.model_folder(name)} holds no finished {kind} model: run the pipeline to its end")
        if name is not None:
            _check_kind(plan.stages[name], kind, classifier)
        model = plan.model(option)
        judges[kind] = Judge(name or str(model), model, classifier)
    if "cost" not in judges:
        return {}
    classifier = judges["cost"].classifier
    if classifier is not None:
        from castor.models.classifier_cost import check_classifier
        from castor.models.moderation import read_moderation_info

        model = judges["cost"].model
        check_classifier(read_moderation_info(model), classifier, str(model))
    return judges


def _judges_of(plan: Plan, policy: Stage) -> dict[str, tuple[ModelOption, Classifier | None]]:
    """By kind: those a policy was trained against, else those of the comparison, else the stages of that name."""
    found: dict[str, tuple[ModelOption, Classifier | None]] = {}
    if policy.field == "rlhf":
        run: RLHF = policy.section
        for signal in run.signals.values():
            if signal.model is not None:
                kind = "cost" if signal.role == "constraint" else "reward"
                found.setdefault(kind, (signal.model, signal.classifier))
    for stage in plan.of_kind("evaluate"):
        section: Evaluate = stage.section
        found.setdefault("reward", (section.reward, None))
        found.setdefault("cost", (section.cost, section.cost_classifier))
    for kind in ("reward", "cost"):
        if kind in plan.stages:
            found.setdefault(kind, (f"stage:{kind}", None))
    return {kind: found[kind] for kind in ("cost", "reward") if kind in found}


def _check_kind(stage: Stage, kind: str, classifier: Classifier | None) -> None:
    """Raise CastorError when a stage does not make the score model that is asked for."""
    wanted = "moderation model" if classifier is not None else f"{kind} model"
    if stage.makes == wanted:
        return
    if stage.makes == "moderation model":
        raise CastorError(
            f"{stage.name} makes a moderation model: set cost_classifier.reduce to make its output a cost"
        )
    if classifier is not None:
        raise CastorError(
            f"{stage.name} makes no moderation model for cost_classifier: set cost to the name of such a stage"
        )
    raise CastorError(f"{stage.name} makes no {wanted}, but {stage.makes}: set cost to the name of such a stage")


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _max_model_len(config: Serve, name: str, policy: Path) -> int:
    try:
        context = read_json(policy / "config.json").get("max_position_embeddings")
    except ValueError:
        raise CastorError(f"{policy / 'config.json'} is not JSON: make the model again") from None
    if context is not None and (config.max_model_len or 0) > context:
        raise CastorError(
            f"max_model_len {config.max_model_len} is longer than the context of {name}, {context} tokens: lower it"
        )
    longest = config.max_model_len or context
    if longest is None:
        raise CastorError(f"the config of {policy} does not say how long its context is: set max_model_len")
    return longest
