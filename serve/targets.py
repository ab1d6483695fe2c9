"""What of a run folder is served, and where: everything that can be refused before a process is started."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from castor.config.serve import Serve
from castor.io.errors import CastorError
from castor.io.files import read_json

PREFERRED = "ppo_lag"
POLICY_FOLDER = "policy"  # of an RLHF run
SCORE_FILE = "castor_score.json"  # as in castor.models.score, whose import takes seconds
MODERATION_FILE = "castor_moderation.json"  # as in castor.models.moderation


@dataclass(frozen=True)
class Targets:
    """The model folders of a run that are served. Absolute: a replica has another working folder."""

    name: str  # of the policy: its run, or sft
    policy: Path
    max_model_len: int
    cost: Path | None  # without a cost model there is no /v1/score
    reward: Path | None


def resolve(config: Serve) -> Targets:
    """Find the policy and the score models. Raises CastorError when there is no such run or it is not finished."""
    run = config.run_dir.absolute()
    if not run.is_dir():
        raise CastorError(f"there is no run at {config.run_dir}: give the folder of a run, e.g. runs/demo")
    name = config.policy or _default_policy(run)
    policy = _policy_folder(run, name)
    cost = _cost_folder(run, config)
    reward = _score_folder(run / "reward", "reward") if cost else None
    return Targets(name, policy, _max_model_len(config, name, policy), cost, reward)


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


def _default_policy(run: Path) -> str:
    if (run / PREFERRED).is_dir():
        return PREFERRED
    finished = sorted(folder.parent.name for folder in run.glob(f"*/{POLICY_FOLDER}") if _is_model(folder))
    if len(finished) > 1:
        raise CastorError(f"{run} holds several policies: choose one of {', '.join(finished)}")
    return finished[0] if finished else "sft"


def _policy_folder(run: Path, name: str) -> Path:
    stage = run / name
    if name not in {path.name for path in run.iterdir() if path.is_dir()}:
        raise CastorError(f"{run} holds no policy {name!r}: {_choices(run)}")
    for file, kind in ((SCORE_FILE, "score"), (MODERATION_FILE, "moderation")):
        if (stage / file).exists():
            raise CastorError(f"{stage} is a {kind} model, not a policy: {_choices(run)}")
    folder = next((path for path in (stage / POLICY_FOLDER, stage) if _is_model(path)), None)
    if folder is None:
        raise CastorError(f"{stage} holds no finished policy: run the pipeline to its end; {_choices(run)}")
    return folder


def _choices(run: Path) -> str:
    names = {path.parent.name for path in run.glob("*/config.json") if _is_policy(path.parent)}
    names |= {path.parent.parent.name for path in run.glob(f"*/{POLICY_FOLDER}/config.json") if _is_policy(path.parent)}
    return f"there is {', '.join(sorted(names))}" if names else "there is none yet"


def _is_policy(folder: Path) -> bool:
    return _is_model(folder) and not any((folder / file).exists() for file in (SCORE_FILE, MODERATION_FILE))


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _cost_folder(run: Path, config: Serve) -> Path | None:
    folder = run / config.cost
    if config.cost_classifier is None:
        if config.cost != "cost" and not folder.is_dir():
            raise CastorError(f"{run} holds no stage {config.cost!r}, whose cost model was to be served")
        if (folder / MODERATION_FILE).is_file():
            raise CastorError(
                f"{folder} holds a moderation model: set cost_classifier.reduce to make its output a cost"
            )
        return _score_folder(folder, "cost")
    if not _is_model(folder) or not (folder / MODERATION_FILE).is_file():
        raise CastorError(
            f"{folder} holds no finished moderation model for cost_classifier: set cost to the name of such a stage"
        )
    from castor.models.classifier_cost import check_classifier
    from castor.models.moderation import read_moderation_info

    check_classifier(read_moderation_info(folder), config.cost_classifier, str(folder))
    return folder


def _score_folder(folder: Path, kind: str) -> Path | None:
    if not folder.is_dir():
        return None
    if not _is_model(folder) or not (folder / SCORE_FILE).is_file():
        raise CastorError(f"{folder} holds no finished {kind} model: run the pipeline to its end")
    return folder


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
