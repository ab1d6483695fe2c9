"""What `castor serve` refuses before it starts anything, and which policy of a run it chooses."""

import json
import socket
from dataclasses import asdict
from pathlib import Path

import pytest

from castor.config.serve import Serve
from castor.config.signal import Classifier
from castor.data.rows.schemas import Exchange
from castor.io.errors import CastorError
from castor.models.moderation import ModerationInfo
from serve.scores import ScoreRequest
from serve.targets import require_free_port, resolve


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


def test_default_is_ppo_lag_and_both_score_models(tmp_path: Path) -> None:
    _model(tmp_path / "sft")
    _model(tmp_path / "ppo/policy")
    policy = _model(tmp_path / "ppo_lag/policy")
    cost, reward = _model(tmp_path / "cost", kind="score"), _model(tmp_path / "reward", kind="score")
    targets = resolve(Serve(run_dir=tmp_path))
    assert (targets.name, targets.policy, targets.max_model_len) == ("ppo_lag", policy, 64)
    assert (targets.cost, targets.reward) == (cost, reward)


def test_default_is_the_only_rlhf_run_else_sft(tmp_path: Path) -> None:
    sft = _model(tmp_path / "sft")
    assert resolve(Serve(run_dir=tmp_path)).policy == sft
    policy = _model(tmp_path / "my_run/policy")
    targets = resolve(Serve(run_dir=tmp_path))
    assert (targets.name, targets.policy) == ("my_run", policy)
    assert targets.cost is None
    _model(tmp_path / "other/policy")
    with pytest.raises(CastorError, match="several policies: choose one of my_run, other"):
        resolve(Serve(run_dir=tmp_path))


def test_a_policy_can_be_named(tmp_path: Path) -> None:
    sft = _model(tmp_path / "sft")
    _model(tmp_path / "ppo_lag/policy")
    targets = resolve(Serve(run_dir=tmp_path, policy="sft", max_model_len=32))
    assert (targets.name, targets.policy, targets.max_model_len) == ("sft", sft, 32)


def test_the_cost_can_be_a_moderation_models(tmp_path: Path) -> None:
    _model(tmp_path / "sft")
    qa = _model(tmp_path / "qa", kind="moderation")
    assert resolve(Serve(run_dir=tmp_path)).cost is None
    targets = resolve(Serve(run_dir=tmp_path, cost="qa", cost_classifier=Classifier(reduce=["privacy_violation"])))
    assert (targets.cost, targets.reward) == (qa, None)


def test_paths_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _model(tmp_path / "demo/sft")
    monkeypatch.chdir(tmp_path)
    assert resolve(Serve(run_dir=Path("demo"))).policy.is_absolute()


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        ([], {"run_dir": "nowhere"}, "there is no run at nowhere"),
        ([], {}, "holds no policy 'sft': there is none yet"),
        (["ppo_lag/"], {}, "no finished policy: run the pipeline to its end; there is none yet"),
        (["sft", "ppo_lag/"], {}, "no finished policy: run the pipeline to its end; there is sft"),
        (["sft", "ppo/policy"], {"policy": "ppp"}, "holds no policy 'ppp': there is ppo, sft"),
        (["sft"], {"policy": ".."}, "holds no policy '..'"),
        (["sft", "cost:score"], {"policy": "cost"}, "is a score model, not a policy: there is sft"),
        (["sft", "cost"], {}, "holds no finished cost model"),
        (["sft", "cost:score", "reward/"], {}, "holds no finished reward model"),
        (["sft"], {"max_model_len": 65}, "longer than the context of sft, 64 tokens"),
        (["sft", "qa:moderation"], {"policy": "qa"}, "is a moderation model, not a policy: there is sft"),
        (["sft", "qa:moderation"], {"cost": "harm"}, "holds no stage 'harm', whose cost model"),
        (["sft", "qa:moderation"], {"cost": "qa"}, "holds a moderation model: set cost_classifier.reduce"),
        (["sft", "cost:score"], {"cost_classifier": {}}, "set cost to the name of such a stage"),
        (
            ["sft", "qa:moderation"],
            {"cost": "qa", "cost_classifier": {"reduce": "expected_severity"}},
            "has no severity head",
        ),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, folders: list[str], options: dict, message: str) -> None:
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
