"""What `castor serve` refuses before it starts anything, and which policy of a run it chooses."""

import importlib
import json
import socket
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from castor.config.gateway import Gateway
from castor.config.guard import Guard
from castor.config.judge import Classifier
from castor.config.load import dump_config, load_config, load_file
from castor.config.pipeline import Config
from castor.config.serve import Judges, Serve
from castor.data.rows.schemas import Exchange
from castor.io.errors import CastorError
from castor.models.moderation import ModerationInfo
from serve.gateway.keys import KeyStore
from serve.gateway.services import ScoreRequest
from serve.targets import (
    Target,
    Targets,
    guard_mode,
    require_free_port,
    require_keys_for_strangers,
    require_readable_keys,
    resolve,
)
from tests.conftest import ROOT


def _model(folder: Path, context: int | None = 64, kind: str = "policy") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama"} | ({} if context is None else {"max_position_embeddings": context})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    if kind == "score":
        (folder / "castor_score.json").write_text("{}")
    if kind == "moderation":
        info = ModerationInfo.fresh("beavertails", "pair", severity=False)
        (folder / "castor_moderation.json").write_text(json.dumps(asdict(info)))
    return folder


DATA = {"data": {"source": "synthetic"}}
HELP = {"role": "objective", "model": "stage:reward"}
HARM = {"role": "constraint", "model": "stage:cost", "threshold": 0.0}
PPO = {"steps": 1, "signals": {"help": HELP}}
LAG = {"steps": 1, "signals": {"help": HELP, "harm": HARM}, "multipliers": {}}
JUDGES = {"reward": DATA, "cost": DATA}


def _run(run: Path, **sections: object) -> Serve:
    """A run of this config, whose folder was moved since."""
    run.mkdir(exist_ok=True)
    values = {"run_dir": "/nowhere/now", "sft": DATA | {"model": "org/base"}} | sections
    (run / "config.yaml").write_text(dump_config(Config.model_validate(values)))
    return Serve(run_dir=run)


def _only(targets: Targets) -> Target:
    (policy,) = targets.policies
    return policy


def _named(run: Path, name: str) -> Target:
    return _only(resolve(Serve.model_validate({"run_dir": run, "policies": [name]})))


def test_default_is_the_constrained_run_with_the_models_it_was_trained_against(tmp_path: Path) -> None:
    config = _run(tmp_path, **JUDGES, rlhf={"lag": LAG, "ppo": PPO}, template="pku")
    _model(tmp_path / "sft")
    _model(tmp_path / "ppo/policy")
    policy = _model(tmp_path / "lag/policy")
    cost, reward = _model(tmp_path / "cost", kind="score"), _model(tmp_path / "reward", kind="score")
    targets = resolve(config)
    served = _only(targets)
    assert (served.name, served.model.name, served.max_model_len) == ("lag", str(policy), 64)
    assert {kind: judge.model.name for kind, judge in targets.judges.items()} == {
        "cost": str(cost), "reward": str(reward),
    }  # fmt: skip
    assert targets.template == served.template == "pku"  # that of training, without being told
    assert not served.model.trust_remote_code
    assert guard_mode(targets, config.guard) == "withhold"


def test_default_is_the_only_rlhf_run_else_sft(tmp_path: Path) -> None:
    config = _run(tmp_path, **JUDGES, rlhf={"one": PPO, "other": PPO})
    sft = _model(tmp_path / "sft")
    assert _only(resolve(config)).model.name == str(sft)
    policy = _model(tmp_path / "one/policy")
    targets = resolve(config)
    assert (_only(targets).name, _only(targets).model.name, targets.judges) == ("one", str(policy), {})
    assert guard_mode(targets, config.guard) == "off"
    _model(tmp_path / "other/policy")
    with pytest.raises(CastorError, match=r"several policies: choose with policies=\[NAME\]; there is sft, one, other"):
        resolve(config)


def test_the_last_round_is_served_with_its_score_models(tmp_path: Path) -> None:
    """As configs/rounds.yaml makes them; a round that is not finished yet is none."""
    run = tmp_path / "rounds"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(load_config(ROOT / "configs" / "rounds.yaml")))
    for number in (1, 2):
        _model(run / f"round-{number}/ppo_lag/policy")
        for kind in ("reward", "cost"):
            _model(run / f"round-{number}/{kind}", kind="score")
    _model(run / "round-3/reward", kind="score")
    targets = resolve(Serve(run_dir=run))
    assert _only(targets).name == "round-2/ppo_lag"
    assert {kind: judge.model.name for kind, judge in targets.judges.items()} == {
        "cost": str(run / "round-2/cost"), "reward": str(run / "round-2/reward"),
    }  # fmt: skip
    first = resolve(Serve.model_validate({"run_dir": run, "policies": ["round-1/ppo_lag"]}))
    assert first.judges["cost"].name == "round-1/cost"


def test_trust_is_that_of_the_run(tmp_path: Path) -> None:
    trusted = {"source": "org/own-code", "trust_remote_code": True}
    config = _run(tmp_path, sft=DATA | {"model": trusted}, rlhf={"one": PPO}, **JUDGES)
    _model(tmp_path / "one/policy")
    assert _only(resolve(config)).model.trust_remote_code


def test_a_policy_can_be_named(tmp_path: Path) -> None:
    _run(tmp_path, **JUDGES, rlhf={"lag": LAG})
    sft = _model(tmp_path / "sft")
    _model(tmp_path / "lag/policy")
    served = _named(tmp_path, "sft")
    assert (served.name, served.model.name, served.max_model_len) == ("sft", str(sft), 64)


def test_several_policies_under_names_of_their_own_share_what_engine_says(tmp_path: Path) -> None:
    _run(tmp_path, **JUDGES, rlhf={"lag": LAG})
    sft, lag, other = _model(tmp_path / "sft"), _model(tmp_path / "lag/policy"), _model(tmp_path / "other", context=32)
    policies = {"lag": {}, "start": {"model": "stage:sft", "max_model_len": 16}, "theirs": {"model": str(other)}}
    values = {"run_dir": tmp_path, "policies": policies, "engine": {"max_num_seqs": 3, "max_model_len": 24}}
    config = Serve.model_validate(values)
    found = {each.name: (each.model.name, each.max_model_len) for each in resolve(config).policies}
    assert found == {"lag": (str(lag), 24), "start": (str(sft), 16), "theirs": (str(other), 24)}
    assert {config.policy(name).max_num_seqs for name in policies} == {3}


def test_models_of_no_run(tmp_path: Path) -> None:
    policy, cost = _model(tmp_path / "policy"), _model(tmp_path / "cost", kind="score")
    values = {"policies": {"mine": {"model": str(policy)}}, "judges": {"cost": str(cost)}, "template": "pku"}
    targets = resolve(Serve.model_validate(values))
    assert (_only(targets).model.name, targets.judges["cost"].model.name) == (str(policy), str(cost))
    assert _only(targets).template == targets.template == "pku"
    with pytest.raises(CastorError, match="policy mine is of a stage, and there is no run: set run_dir"):
        resolve(Serve.model_validate({"policies": {"mine": {}}}))
    with pytest.raises(ValueError, match="give run_dir, or policies with a model each"):
        Serve.model_validate({})


def test_a_guard_needs_a_judge_and_categories_that_it_knows(tmp_path: Path) -> None:
    config = _run(tmp_path, moderation={"qa": DATA})
    _model(tmp_path / "sft")
    for mode in ("annotate", "withhold", "best_of", "regenerate"):
        with pytest.raises(CastorError, match=f"guard.mode {mode} needs a cost or a moderation model"):
            resolve(config.model_copy(update={"guard": Guard(mode=mode)}))
    _model(tmp_path / "qa", kind="moderation")
    resolve(config.model_copy(update={"guard": Guard(mode="withhold", categories={"animal_abuse": 0.2})}))
    with pytest.raises(CastorError, match="no 'animal_abus'; the nearest one is 'animal_abuse'"):
        resolve(config.model_copy(update={"guard": Guard(categories={"animal_abus": 0.2})}))


def test_pickles_are_not_served(tmp_path: Path) -> None:
    policy = _model(tmp_path / "policy")
    (policy / "model.safetensors").rename(policy / "pytorch_model.bin")
    with pytest.raises(CastorError, match="holds no safetensors, and nothing else is served"):
        resolve(Serve.model_validate({"policies": {"mine": {"model": str(policy)}}}))


def test_keys_are_read_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CastorError):
        require_readable_keys(Gateway(keys=tmp_path / "none.json"))
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(CastorError, match="holds no key, so nobody could ask"):
        require_readable_keys(Gateway(keys=tmp_path / "empty.json"))
    KeyStore(tmp_path / "keys.json").create("me")
    require_readable_keys(Gateway(keys=tmp_path / "keys.json"))


def test_strangers_need_keys(tmp_path: Path) -> None:
    require_keys_for_strangers(Gateway())
    require_keys_for_strangers(Gateway(host="0.0.0.0", keys=tmp_path / "keys.json"))
    with pytest.raises(CastorError, match=r"on 0\.0\.0\.0 anybody could ask: set gateway\.keys"):
        require_keys_for_strangers(Gateway(host="0.0.0.0"))


def test_the_cost_can_be_a_moderation_models(tmp_path: Path) -> None:
    config = _run(tmp_path, moderation={"qa": DATA})
    _model(tmp_path / "sft")
    qa = _model(tmp_path / "qa", kind="moderation")
    assert list(resolve(config).judges) == ["moderation"]
    classifier = Classifier(reduce=["privacy_violation"])
    judges = Judges(cost="stage:qa", cost_classifier=classifier)
    judge = resolve(config.model_copy(update={"judges": judges})).judges["cost"]
    assert (judge.name, judge.model.name, judge.classifier) == ("qa", str(qa), classifier)


def test_a_classifiers_cost_is_served_as_the_run_had_it(tmp_path: Path) -> None:
    harm = {"role": "constraint", "model": "stage:qa", "classifier": {"reduce": "mean"}, "threshold": 0.0}
    run = LAG | {"signals": {"help": HELP, "harm": harm | {"critic_model": "stage:sft"}}}
    config = _run(tmp_path, **JUDGES, moderation={"qa": DATA}, rlhf={"lag": run})
    _model(tmp_path / "lag/policy")
    _model(tmp_path / "qa", kind="moderation")
    assert resolve(config).judges["cost"].classifier == Classifier(reduce="mean")


def test_paths_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path / "demo")
    _model(tmp_path / "demo/sft")
    monkeypatch.chdir(tmp_path)
    assert Path(_only(resolve(Serve(run_dir=Path("demo")))).model.name).is_absolute()


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        ([], {"run_dir": "nowhere"}, "there is no run at nowhere"),
        ([], {}, "holds no finished policy: run the pipeline to its end; there is none yet"),
        (["sft"], {"policies": ["lag"]}, "holds no finished policy 'lag': run the pipeline to its end; there is sft"),
        (["sft", "ppo/policy"], {"policies": ["ppp"]}, "has no policy 'ppp': there is sft, ppo"),
        (["sft"], {"policies": [".."]}, "has no policy '..'"),
        (["sft", "cost:score"], {"policies": ["cost"]}, "stage cost makes cost model, not a policy: there is sft"),
        (["lag/policy", "cost/"], {}, "holds no finished cost model: run the pipeline to its end"),
        (["lag/policy", "cost:score", "reward/"], {}, "holds no finished reward model"),
        (["sft"], {"engine": {"max_model_len": 65}}, "longer than the context of sft, 64 tokens"),
        (["sft", "qa:moderation"], {"judges": {"cost": "stage:harm"}}, "has no stage 'harm', whose cost model"),
        (["sft", "qa:moderation"], {"judges": {"cost": "stage:qa"}}, "set judges.cost_classifier.reduce"),
        (
            ["sft", "cost:score"],
            {"judges": {"cost": "stage:cost", "cost_classifier": {}}},
            "cost makes no moderation model",
        ),
        (["sft", "cost:score"], {"judges": {"cost_classifier": {}}}, "set judges.cost to that model"),
        (["sft", "reward:score"], {"judges": {"cost": "stage:reward"}}, "reward makes no cost model, but reward model"),
        (
            ["sft", "qa:moderation"],
            {"judges": {"cost": "stage:qa", "cost_classifier": {"reduce": "expected_severity"}}},
            "has no severity head",
        ),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, folders: list[str], options: dict, message: str) -> None:
    _run(tmp_path, **JUDGES, moderation={"qa": DATA}, rlhf={"lag": LAG, "ppo": PPO})
    for name in folders:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            folder, _, kind = name.partition(":")
            _model(tmp_path / folder, kind=kind or "policy")
    with pytest.raises(CastorError) as error:
        resolve(Serve.model_validate({"run_dir": tmp_path} | options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_run_and_a_run_of_another_version(tmp_path: Path) -> None:
    _model(tmp_path / "sft")
    with pytest.raises(CastorError, match=r"is no run, it has no config\.yaml"):
        resolve(Serve(run_dir=tmp_path))
    config = _run(tmp_path)
    (tmp_path / "stages.json").write_text('{"sft": {"key": "k", "seconds": 1.0}}')
    with pytest.raises(CastorError, match="was made by another version of Castor"):
        resolve(config)


def test_port_in_use_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CastorError, match=f"port {port} on 127.0.0.1 is in use: stop the program"):
            require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_host_that_is_not_this_machine() -> None:
    with pytest.raises(CastorError, match=r"cannot listen on 192\.0\.2\.1 port 8000 \("):
        require_free_port("192.0.2.1", 8000)


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a"},
        {"prompt": "", "response": "b"},
        {"prompt": 1, "response": "b"},
        {"items": []},
        {"items": [{"prompt": "a"}]},
        {"items": [{"prompt": "a", "response": "b"}] * 257},
        {"prompt": "a", "response": "b", "items": [{"prompt": "a", "response": "b"}]},
        {"prompt": "a", "items": [{"prompt": "a", "response": "b"}]},
        {"prompt": "a", "response": "b", "reply": "c"},
        {"prompt": "a", "response": "b", "messages": [USER, ASSISTANT]},
        {"messages": [USER]},
        {"messages": [ASSISTANT, USER]},
        {"messages": [USER, ASSISTANT, USER]},
        {"messages": [{"role": "system", "content": "s"}, ASSISTANT]},
        {"messages": [{"role": "user", "content": " "}, ASSISTANT]},
        {"items": [{"messages": [USER, ASSISTANT], "prompt": "a"}]},
        {"prompt": "a", "response": "x" * 1_000_001},
    ],
)
def test_bad_score_requests(body: dict) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ScoreRequest.model_validate(body)


def test_every_form_of_a_score_request() -> None:
    item = {"prompt": "a", "response": ""}
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", ""))]
    one, several = ScoreRequest.model_validate(item), ScoreRequest.model_validate({"items": [item, item]})
    assert one.texts() == ScoreRequest.model_validate({"messages": turns}).texts() == [Exchange("a", "")]
    assert several.texts() == [Exchange("a", "")] * 2
    chat = ScoreRequest.model_validate({"items": [{"messages": [USER, ASSISTANT, *turns]}]})
    assert chat.texts() == [Exchange("a", "", (("q", "r"),))]


def test_the_example_is_a_config_and_clusters_deploy_it() -> None:
    example, cluster = ROOT / "configs/serve/demo.yaml", ROOT / "configs/serve/cluster.yaml"
    assert load_file(Serve, example).policies
    (app,) = yaml.safe_load(cluster.read_text())["applications"]
    options = dict(app["args"])
    assert ROOT / options.pop("config") == example
    assert load_file(Serve, example, [f"{key}={value}" for key, value in options.items()]).gateway.host == "0.0.0.0"
    module, _, name = app["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
