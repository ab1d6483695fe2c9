"""What is served, and by which models: everything that can be refused before a process is started."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from castor.config.evaluate import Evaluate
from castor.config.gateway import Gateway
from castor.config.guard import Guard, GuardMode
from castor.config.judge import Classifier
from castor.config.model import Model, ModelOption, source_of, stage_of
from castor.config.rlhf import RLHF
from castor.config.serve import Serve
from castor.io.errors import CastorError
from castor.io.files import fingerprint, read_json
from castor.model_reference import ModelReference
from castor.run.plan import Plan
from castor.run.stages.stage import Stage
from castor.run.survey import plan_of_run
from castor.taxonomy import nearest_category
from serve.judgement import JUDGES, JudgeName

APPLICATION = "castor"  # name of the Serve application


@dataclass(frozen=True)
class Judge:
    """A model that judges; with `classifier`, a moderation model as a cost."""

    name: str  # of its stage, or the model's own
    model: ModelReference
    classifier: Classifier | None = None


@dataclass(frozen=True)
class Target:
    """A served policy."""

    name: str  # clients ask for it by this
    model: ModelReference
    max_model_len: int
    template: str  # prompt format it was trained with
    versions: Path  # file of `serve.versions.Versions`


@dataclass(frozen=True)
class Targets:
    """All that is served."""

    policies: tuple[Target, ...]
    judges: dict[JudgeName, Judge]  # those there are
    template: str  # that the judges read their texts in
    name: str  # of the judges together, as /v1/score gives it


def resolve(config: Serve) -> Targets:
    """The policies and their judges. Raises CastorError for what cannot be served."""
    plan = None if config.run_dir is None else plan_of_run(config.run_dir)
    template = config.template or (plan.config.template if plan else "auto")
    names = list(config.policies) or [_policy(plan, None).name if plan else ""]
    stages = {name: _stage_of(plan, config, name) for name in names}
    policies = tuple(_target(plan, config, name, stage, template) for name, stage in stages.items())
    trained = next((stage for stage in stages.values() if stage is not None), None)
    judges = _judges(plan, trained, config)
    run = plan.files.folder.absolute().name if plan else "models"
    last = judges.get("cost") or judges.get("moderation") or judges.get("reward")
    targets = Targets(policies, judges, template, f"{run}/{last.name}" if last else run)
    for name in names:
        guard_mode(targets, config.guard_of(name))
    _check_categories(targets, config)
    return targets


def guard_mode(targets: Targets, guard: Guard) -> GuardMode:
    """The mode of a guard, `auto` resolved. Raises CastorError for one that has nobody to ask."""
    judged = "cost" in targets.judges or "moderation" in targets.judges
    if guard.mode == "auto":
        return "withhold" if judged else "off"
    if guard.mode != "off" and not judged:
        raise CastorError(
            f"guard.mode {guard.mode} needs a cost or a moderation model, and there is none: set judges.cost or "
            "judges.moderation, or guard.mode: off"
        )
    return guard.mode


def _check_categories(targets: Targets, config: Serve) -> None:
    """Raise CastorError for a threshold of a category that the moderation model does not have."""
    named = {name for policy in targets.policies for name in config.guard_of(policy.name).categories}
    if not named:
        return
    if "moderation" not in targets.judges:
        raise CastorError("guard.categories are of a moderation model, and there is none: set judges.moderation")
    known = read_head_categories(targets.judges["moderation"].model)
    for name in sorted(named - set(known)):
        near = nearest_category(name, known)
        raise CastorError(f"guard.categories: the moderation model has no {name!r}; the nearest one is {near!r}")


def read_head_categories(model: ModelReference) -> tuple[str, ...]:
    """The categories of a moderation model."""
    from castor.models.moderation import read_moderation_info

    return read_moderation_info(model).categories


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


def require_keys_for_strangers(config: Gateway) -> None:
    """Raise CastorError when anybody in the network could ask. Only this machine's own users may without a key."""
    if config.host not in ("127.0.0.1", "::1", "localhost") and not (config.keys or config.keys_env):
        raise CastorError(
            f"on {config.host} anybody could ask: set gateway.keys to a file of API keys (`castor serve keys create "
            "NAME` makes one), or keep to gateway.host 127.0.0.1"
        )


def require_readable_keys(config: Gateway) -> None:
    """Raise CastorError for keys that cannot be read, or when there are none, so that nobody could ask."""
    from serve.gateway.keys import parse_records, read_records

    if config.keys is not None:
        found = read_records(config.keys)
    elif config.keys_env is not None:
        found = parse_records(os.environ.get(config.keys_env, ""), f"${config.keys_env}")
    else:
        return
    if not found:
        raise CastorError(
            f"{config.keys or config.keys_env} holds no key, so nobody could ask: make one with `castor "
            "serve keys create NAME`"
        )


def _stage_of(plan: Plan | None, config: Serve, name: str) -> Stage | None:
    """The stage that makes a policy; None for a model of no stage."""
    option = config.policy(name).model
    stage = name if option is None else stage_of(source_of(option))
    if stage is None:
        return None
    if plan is None:
        raise CastorError(f"policy {name} is of a stage, and there is no run: set run_dir, or policies.{name}.model")
    return _policy(plan, stage)


def _target(plan: Plan | None, config: Serve, name: str, stage: Stage | None, template: str) -> Target:
    option = config.policy(name).model
    if stage is not None:
        assert plan is not None
        model = plan.model(f"stage:{stage.name}")
    else:
        assert option is not None
        model = _safetensors(plan.model(option) if plan else _reference(option))
    mine = Path.home() / ".castor" / "served" / f"{fingerprint([name, str(model)])}.json"
    versions = plan.files.served_versions.absolute() if plan else mine
    return Target(name, model, _max_model_len(config, name, model), template, versions)


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
        raise CastorError(f"{run} holds several policies: choose with policies=[NAME]; {choices}")
    if "sft" not in finished:
        raise CastorError(f"{run} holds no finished policy: run the pipeline to its end; {choices}")
    return finished["sft"]


def _judges(plan: Plan | None, policy: Stage | None, config: Serve) -> dict[JudgeName, Judge]:
    """The judges that the config names, else those that belong to a policy, as far as they are finished."""
    options, wanted = _judges_of(plan, policy), config.judges
    for kind in JUDGES:
        option = getattr(wanted, kind)
        if option is not None:
            options[kind] = option, wanted.cost_classifier if kind == "cost" else None
    if wanted.cost is None and wanted.cost_classifier is not None:
        raise CastorError("judges.cost_classifier makes a cost of a moderation model: set judges.cost to that model")
    judges: dict[JudgeName, Judge] = {}
    for kind, (option, classifier) in options.items():
        name = stage_of(source_of(option))
        if name is not None:
            if plan is None or name not in plan.stages:
                where = plan.files.folder if plan else "no run, which"
                raise CastorError(f"{where} has no stage {name!r}, whose {kind} model was to be served")
            _check_kind(plan.stages[name], kind, classifier)
            if not _is_model(plan.model_folder(name)):
                if getattr(wanted, kind) is None and not plan.model_folder(name).is_dir():
                    continue
                raise CastorError(
                    f"{plan.model_folder(name)} holds no finished {kind} model: run the pipeline to its end"
                )
        model = _safetensors(plan.model(option) if plan else _reference(option))
        judges[kind] = Judge(name or str(model), model, classifier)
        if classifier is not None:
            from castor.models.classifier_cost import check_classifier
            from castor.models.moderation import read_moderation_info

            check_classifier(read_moderation_info(model), classifier, str(model))
    return judges


def _judges_of(plan: Plan | None, policy: Stage | None) -> dict[JudgeName, tuple[ModelOption, Classifier | None]]:
    """By kind: those a policy was trained against, else those of the comparison, else the stages of that name."""
    found: dict[JudgeName, tuple[ModelOption, Classifier | None]] = {}
    if plan is None:
        return found
    if policy is not None and policy.field == "rlhf":
        run: RLHF = policy.section
        for signal in run.signals.values():
            if signal.model is not None and signal.role != "monitor":
                found.setdefault("cost" if signal.role == "constraint" else "reward", (signal.model, signal.classifier))
    for stage in plan.of_kind("evaluate"):
        section: Evaluate = stage.section
        if section.reward is not None:
            found.setdefault("reward", (section.reward, None))
        if section.cost is not None:
            found.setdefault("cost", (section.cost, section.cost_classifier))
    for kind in ("reward", "cost"):
        if kind in plan.stages:
            found.setdefault(kind, (f"stage:{kind}", None))
    moderators = [stage.name for stage in plan.stages.values() if stage.makes == "moderation model"]
    if len(moderators) == 1:
        found["moderation"] = f"stage:{moderators[0]}", None
    return {kind: found[kind] for kind in JUDGES if kind in found}


def _check_kind(stage: Stage, kind: str, classifier: Classifier | None) -> None:
    """Raise CastorError when a stage does not make the score model that is asked for."""
    wanted = "moderation model" if classifier is not None or kind == "moderation" else f"{kind} model"
    if stage.makes == wanted:
        return
    if stage.makes == "moderation model":
        raise CastorError(
            f"{stage.name} makes a moderation model: set judges.cost_classifier.reduce to make its output a cost"
        )
    if classifier is not None:
        raise CastorError(
            f"{stage.name} makes no moderation model for judges.cost_classifier: set judges.cost to one that does"
        )
    raise CastorError(f"{stage.name} makes no {wanted}, but {stage.makes}: set judges.{kind} to one that does")


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _safetensors(model: ModelReference) -> ModelReference:
    """The model. Raises CastorError for a folder that would be read from pickles, which can run code."""
    folder = Path(model.name)
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        raise CastorError(f"{folder} holds no safetensors, and nothing else is served: save the model again as such")
    return model


def _reference(option: ModelOption) -> ModelReference:
    """A model of no run."""
    source, path = source_of(option), Path(source_of(option))
    name = str(path.absolute()) if path.is_dir() else source
    return (
        ModelReference(name, option.revision, option.trust_remote_code)
        if isinstance(option, Model)
        else (ModelReference(name))
    )


def _max_model_len(config: Serve, name: str, model: ModelReference) -> int:
    policy, wanted = model.local(weights=False), config.policy(name).max_model_len
    try:
        context = read_json(policy / "config.json").get("max_position_embeddings")
    except ValueError:
        raise CastorError(f"{policy / 'config.json'} is not JSON: make the model again") from None
    except FileNotFoundError:
        raise CastorError(f"{model} holds no model (config.json is missing): give the folder of a policy") from None
    if context is not None and (wanted or 0) > context:
        raise CastorError(f"max_model_len {wanted} is longer than the context of {name}, {context} tokens: lower it")
    longest = wanted or context
    if longest is None:
        raise CastorError(f"the config of {policy} does not say how long its context is: set max_model_len")
    return int(longest)
