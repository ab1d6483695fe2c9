"""What `castor serve` refuses before it starts anything, and which policy of a run it chooses."""

import json
import socket
from dataclasses import asdict
from pathlib import Path

import pytest

from castor.config.load import dump_config, load_config
from castor.config.pipeline import Config
from castor.config.serve import Serve
from castor.config.signal import Classifier
from castor.data.rows.schemas import Exchange
from castor.io.errors import CastorError
from castor.models.moderation import ModerationInfo
from serve.scores import ScoreRequest
from serve.targets import require_free_port, resolve
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


def test_default_is_the_constrained_run_with_the_models_it_was_trained_against(tmp_path: Path) -> None:
    config = _run(tmp_path, **JUDGES, rlhf={"lag": LAG, "ppo": PPO}, template="pku")
    _model(tmp_path / "sft")
    _model(tmp_path / "ppo/policy")
    policy = _model(tmp_path / "lag/policy")
    cost, reward = _model(tmp_path / "cost", kind="score"), _model(tmp_path / "reward", kind="score")
    targets = resolve(config)
    assert (targets.name, targets.policy.name, targets.max_model_len) == ("lag", str(policy), 64)
    assert {kind: judge.model.name for kind, judge in targets.judges.items()} == {
        "cost": str(cost), "reward": str(reward),
    }  # fmt: skip
    assert targets.template == "pku"  # that of training, without being told
    assert not targets.policy.trust_remote_code


def test_default_is_the_only_rlhf_run_else_sft(tmp_path: Path) -> None:
    config = _run(tmp_path, **JUDGES, rlhf={"one": PPO, "other": PPO})
    sft = _model(tmp_path / "sft")
    assert resolve(config).policy.name == str(sft)
    policy = _model(tmp_path / "one/policy")
    targets = resolve(config)
    assert (targets.name, targets.policy.name, targets.judges) == ("one", str(policy), {})
    _model(tmp_path / "other/policy")
    with pytest.raises(CastorError, match="several policies: choose one with policy=NAME; there is sft, one, other"):
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
    assert targets.name == "round-2/ppo_lag"
    assert {kind: judge.model.name for kind, judge in targets.judges.items()} == {
        "cost": str(run / "round-2/cost"), "reward": str(run / "round-2/reward"),
    }  # fmt: skip
    assert resolve(Serve(run_dir=run, policy="round-1/ppo_lag")).judges["cost"].name == "round-1/cost"


def test_trust_is_that_of_the_run(tmp_path: Path) -> None:
    trusted = {"source": "org/own-code", "trust_remote_code": True}
    config = _run(tmp_path, sft=DATA | {"model": trusted}, rlhf={"one": PPO}, **JUDGES)
    _model(tmp_path / "one/policy")
    assert resolve(config).policy.trust_remote_code


def test_a_policy_can_be_named(tmp_path: Path) -> None:
    config = _run(tmp_path, **JUDGES, rlhf={"lag": LAG})
    sft = _model(tmp_path / "sft")
    _model(tmp_path / "lag/policy")
    targets = resolve(config.model_copy(update={"policy": "sft", "max_model_len": 32}))
    assert (targets.name, targets.policy.name, targets.max_model_len) == ("sft", str(sft), 32)


def test_the_cost_can_be_a_moderation_models(tmp_path: Path) -> None:
    config = _run(tmp_path, moderation={"qa": DATA})
    _model(tmp_path / "sft")
    qa = _model(tmp_path / "qa", kind="moderation")
    assert resolve(config).judges == {}
    classifier = Classifier(reduce=["privacy_violation"])
    (judge,) = resolve(config.model_copy(update={"cost": "qa", "cost_classifier": classifier})).judges.values()
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
    assert Path(resolve(Serve(run_dir=Path("demo"))).policy.name).is_absolute()


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        ([], {"run_dir": "nowhere"}, "there is no run at nowhere"),
        ([], {}, "holds no finished policy: run the pipeline to its end; there is none yet"),
        (["sft"], {"policy": "lag"}, "holds no finished policy 'lag': run the pipeline to its end; there is sft"),
        (["sft", "ppo/policy"], {"policy": "ppp"}, "has no policy 'ppp': there is sft, ppo"),
        (["sft"], {"policy": ".."}, "has no policy '..'"),
        (["sft", "cost:score"], {"policy": "cost"}, "stage cost makes cost model, not a policy: there is sft"),
        (["lag/policy", "cost/"], {}, "holds no finished cost model: run the pipeline to its end"),
        (["lag/policy", "cost:score", "reward/"], {}, "holds no finished reward model"),
        (["sft"], {"max_model_len": 65}, "longer than the context of sft, 64 tokens"),
        (["sft", "qa:moderation"], {"cost": "harm"}, "has no stage 'harm', whose cost model"),
        (["sft", "qa:moderation"], {"cost": "qa"}, "qa makes a moderation model: set cost_classifier.reduce"),
        (["sft", "cost:score"], {"cost": "cost", "cost_classifier": {}}, "cost makes no moderation model"),
        (["sft", "cost:score"], {"cost_classifier": {}}, "set cost to the name of its stage"),
        (["sft", "reward:score"], {"cost": "reward"}, "reward makes no cost model, but reward model"),
        (
            ["sft", "qa:moderation"],
            {"cost": "qa", "cost_classifier": {"reduce": "expected_severity"}},
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
        resolve(Serve(**({"run_dir": tmp_path} | options)))
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
