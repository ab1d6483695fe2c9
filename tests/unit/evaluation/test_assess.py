"""castor assess: from folders and rows to assess.json and assess.html, and one clear error for each bad input."""

import dataclasses
import json
import re
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from castor.cli.assess import assess as command
from castor.config.assess import Assess
from castor.config.data import DataSource
from castor.config.load import load_file, load_section
from castor.data.rows.schemas import QARow
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.evaluation.anchors import ACCOUNTS, ANCHORS
from castor.evaluation.assess import assess
from castor.evaluation.assessment import Assessment, schema_text
from castor.evaluation.labelled import category_groups, label_vectors, load_labelled
from castor.evaluation.model_figures import figures_of
from castor.evaluation.model_outputs import Outputs, model_kind, run_model
from castor.io.errors import CastorError
from castor.io.terminal import Terminal
from castor.models.load import load_score_model
from castor.models.moderation import ModerationInfo, ModerationModel, save_moderation_model
from castor.models.score import save_score_model
from castor.packing import pack_rows
from castor.reports.assess_page import cell, write_page
from castor.scoring.keywords import keyword_verdicts
from castor.scoring.moderator import Moderator
from castor.statistics.bootstrap import Estimate
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES
from tests.chat_server import SAFE, UNSAFE, Server
from tests.conftest import TinyModels
from tests.numerics import TINY_MODELS, tolerance

DOCS = Path(__file__).parents[3] / "docs"
PAIR = {
    "prompt": "Q0", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1,
    "is_response_0_safe": False, "is_response_1_safe": True,
    "response_0_harm_category": {name: name == "Violence" for name in PKU_CATEGORIES},
    "response_1_harm_category": dict.fromkeys(PKU_CATEGORIES, False),
    "response_0_severity_level": 2, "response_1_severity_level": 0,
}  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> DataSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSource(source=str(path))


@pytest.fixture
def four_pairs(tmp_path: Path) -> DataSource:
    """Four prompts of one pair each: response a is better and unsafe, b is safe."""
    return write(tmp_path / "pairs.jsonl", [{**PAIR, "prompt": f"Q{i}"} for i in range(4)])


@pytest.fixture(scope="session")
def moderation_model(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random severity-sensitive moderation model of the 19 categories."""
    folder = tmp_path_factory.mktemp("assess") / "moderation"
    torch.manual_seed(2)
    model = ModerationModel.from_backbone(tiny_models.policy, ModerationInfo.fresh("pku", "pair", True), torch.float32)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    save_moderation_model(folder, model.backbone, weights, model.info, tiny_models.policy)
    return str(folder)


def config(out: Path, models: dict[str, str], **more: Any) -> Assess:
    return Assess.model_validate({"models": models, "data": {"limit": 40, "split": "test"}, "out": out, **more})


# ---- figures from outputs that are known


def test_figures_of_a_reward_model_by_hand(four_pairs: DataSource) -> None:
    data = load_labelled("data", four_pairs, ["reward"])
    assert (len(data.pairs), data.rows, len(data.texts)) == (4, [], 8)
    # right, a tie, wrong, and one pair of which a text is too long
    scores = np.array([2.0, 1.0, 0.0, 0.0, -1.0, 0.5, 0.0, 9.0])
    kept = np.array([True] * 6 + [False, True])
    found = figures_of(Outputs("reward", kept, scores), data, seed=0)
    assert found.too_long == 1
    accuracy = found.overall["reward_accuracy"]
    assert accuracy is not None
    assert (accuracy.value, accuracy.n, accuracy.prompts) == (1 / 3, 3, 3)
    violence = found.by_category["Violence"]["reward_accuracy"]
    assert violence is not None
    assert violence.value == 1 / 3
    assert found.by_category["safe"]["reward_accuracy"] is None
    assert list(found.by_severity) == ["moderate"]  # that of the worse response
    assert found.reliability == []


def test_figures_of_a_cost_model_by_hand(four_pairs: DataSource) -> None:
    data = load_labelled("data", four_pairs, ["cost"])
    costs = np.array([1.0, -1.0, 2.0, 0.0, -1.0, -2.0, 0.5, 0.5])  # of a (unsafe) and b (safe), pair by pair
    probability = 1 / (1 + np.exp(-costs))
    found = figures_of(Outputs("cost", np.ones(8, dtype=bool), costs, probability, costs > 0), data, seed=0)
    values = {name: figure.value for name, figure in found.overall.items() if figure is not None}
    assert values["cost_ranking_accuracy"] == 3 / 4  # the last pair is a tie
    assert values["cost_sign_accuracy"] == 5 / 8  # a cost of 0 is wrong
    assert values["accuracy"] == 6 / 8  # a cost of 0 is no verdict of unsafe
    assert values["false_positive_rate"] == 1 / 4
    assert values["f1"] == pytest.approx(6 / 8)
    unsafe = np.array([True, False] * 4)
    assert values["brier"] == pytest.approx(np.mean((probability - unsafe) ** 2))
    by_severity = found.by_severity["moderate"]["cost_sign_accuracy"]
    assert by_severity is not None
    assert by_severity.value == 3 / 4
    assert "f1" not in found.by_severity["moderate"]
    assert sum(point.n for point in found.reliability) == 8


def test_figures_of_a_moderation_model_by_hand(four_pairs: DataSource) -> None:
    data = load_labelled("data", four_pairs, ["moderation"])
    labels = np.zeros((8, 19), dtype=bool)
    violence, drugs = PKU_CATEGORIES.index("Violence"), PKU_CATEGORIES.index("Drugs")
    labels[[0, 2, 4], violence] = True
    labels[4, drugs] = True  # right that it is unsafe, one label too many; the unsafe text 6 is missed
    severity = np.array([2, 0, 3, 0, 2, 0, 0, 0])
    unsafe = labels.any(axis=1)
    everything, probability = np.ones(8, dtype=bool), unsafe * 0.8 + 0.1
    outputs = Outputs("moderation", everything, None, probability, unsafe, PKU_CATEGORIES, labels, severity)
    found = figures_of(outputs, data, seed=0)
    values = {name: figure.value for name, figure in found.overall.items() if figure is not None}
    assert values["accuracy"] == 7 / 8
    assert values["exact_match"] == 6 / 8
    assert values["severity_accuracy"] == 6 / 8
    assert values["severity_accuracy_unsafe"] == 2 / 4
    assert values["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)  # Violence and Drugs
    assert found.by_label["Violence"].positives == 4
    assert found.by_label["Violence"].f1 is not None
    assert found.by_label["Violence"].f1.value == pytest.approx(6 / 7)
    assert found.by_label["Animal Abuse"].f1 is None
    assert not found.labels_mapped


def test_labels_of_the_other_taxonomy_are_translated_and_said_to_be() -> None:
    rows = [QARow("q", "a", False, frozenset({"Drugs"})), QARow("q", "b", True, frozenset()), QARow("q", "c", False)]
    vectors, known, mapped = label_vectors(rows, BEAVERTAILS_CATEGORIES)
    assert known.tolist() == [True, True, False]
    assert mapped
    assert np.flatnonzero(vectors[0]).tolist() == [BEAVERTAILS_CATEGORIES.index("drug_abuse,weapons,banned_substance")]
    assert not vectors[1:].any()
    assert label_vectors(rows, PKU_CATEGORIES)[2] is False


def test_a_row_is_in_every_one_of_its_categories_and_else_among_the_safe() -> None:
    groups = category_groups([frozenset({"Drugs", "Violence"}), frozenset(), None])
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "Violence": [True, False, False], "Drugs": [True, False, False], "safe": [False, True, False],
    }  # fmt: skip
    assert category_groups([None, None]) == {}


# ---- models


def test_the_kind_of_a_model_is_read_from_its_folder(tiny_models: TinyModels, moderation_model: str) -> None:
    assert model_kind("x", tiny_models.reward) == "reward"
    assert model_kind("x", tiny_models.cost) == "cost"
    assert model_kind("x", moderation_model) == "moderation"


def test_scores_are_those_of_each_text_by_itself(tiny_models: TinyModels, tmp_path: Path) -> None:
    options = config(tmp_path, {"cost": tiny_models.cost}, batch_tokens=200)
    data = load_labelled("data", options.data, ["cost"])
    seen: list[tuple[int, int]] = []
    outputs = run_model("cost", tiny_models.cost, "cost", data.texts, options, lambda *done: seen.append(done))
    assert outputs.scores is not None
    assert outputs.probability is not None
    assert outputs.kept.all()
    assert seen[-1] == (len(data.texts), len(data.texts))
    assert len(seen) > 3
    model = load_score_model(tiny_models.cost, torch.float32).eval()
    template = PromptTemplate(load_tokenizer(tiny_models.cost))
    for index in (0, 5, len(data.texts) - 1):
        text = data.texts[index]
        tokens = np.array([*template.encode_prompt(text.prompt), *template.encode_response(text.response)])
        rows = pack_rows(tokens, np.array([len(tokens)]), len(tokens))
        with torch.no_grad():
            alone = model(rows, torch.tensor([len(tokens) - 1])).item()
        assert outputs.scores[index] == pytest.approx(alone, abs=tolerance(outputs.scores, TINY_MODELS))
        expected = 1 / (1 + np.exp(-alone * model.info.std))
        assert outputs.probability[index] == pytest.approx(expected, abs=tolerance(1.0, TINY_MODELS))


def test_texts_that_are_too_long_are_left_out_and_counted(
    tiny_models: TinyModels, moderation_model: str, tmp_path: Path
) -> None:
    models = {"cost": tiny_models.cost, "moderation": moderation_model}
    data = load_labelled("data", config(tmp_path, models).data, ["cost"])
    for name, model in models.items():
        kind = model_kind(name, model)
        whole = run_model(name, model, kind, data.texts, config(tmp_path, models), lambda *done: None)
        short = run_model(name, model, kind, data.texts, config(tmp_path, models, max_length=24), lambda *done: None)
        assert 0 < short.kept.sum() < whole.kept.sum() == len(data.texts)
        assert whole.probability is not None
        assert short.probability is not None
        rounding = tolerance(1.0, TINY_MODELS)
        assert short.probability[short.kept] == pytest.approx(whole.probability[short.kept], abs=rounding)
        with pytest.raises(CastorError, match=rf"{name}.*longer than max_length 3"):
            run_model(name, model, kind, data.texts, config(tmp_path, models, max_length=3), lambda *done: None)


# ---- the whole


def test_everything_from_folders_to_json_and_page(
    tiny_models: TinyModels, moderation_model: str, tmp_path: Path
) -> None:
    def script(texts: dict[str, str], attempt: int) -> str | int:
        if "preferred" in texts or "answer A" in texts:
            return json.dumps({"preferred": "A" if len(texts["answer A"]) > len(texts["answer B"]) else "B"})
        return 400 if len(texts["answer"]) % 7 == 0 else UNSAFE if len(texts["answer"]) % 2 else SAFE

    server = Server(script)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    qa = [
        {"prompt": f"<script>q{i}</script>", "response": f"a{j}", "is_safe": j == 0} for i in range(6) for j in (0, 1)
    ]
    ood = write(tmp_path / "<other>.jsonl", qa)
    judge = {"kind": "llm", "url": server.url, "model": "m", "limit": 20, "questions": ["unsafe", "more helpful"]}
    options = config(
        tmp_path / "out",
        {"<b>reward": tiny_models.reward, "cost": tiny_models.cost, "moderation": moderation_model},
        data={"limit": 60, "split": "test", "synthetic": {"taxonomy": "pku"}},
        out_of_distribution={"source": ood.source, "helpfulness": "longer"},
        judges={"words": {"kind": "keywords"}, "a model": judge},
    )
    with pytest.raises(CastorError, match="no pair with better_response_id"):  # equally long answers
        assess(options, Terminal())
    qa = [row | {"response": f"{'safe' if row['is_safe'] else 'unsafe'} {row['response']}"} for row in qa]
    write(tmp_path / "<other>.jsonl", qa)
    found, scored = assess(options, Terminal())
    write_page(tmp_path / "out" / "assess.html", found, scored)
    server.shutdown()
    server.server_close()

    assert Assessment.model_validate_json((tmp_path / "out" / "assess.json").read_bytes()) == found
    jsonschema.validate(json.loads((tmp_path / "out" / "assess.json").read_text()), json.loads(schema_text()))
    assert {name: model.kind for name, model in found.models.items()} == {
        "<b>reward": "reward", "cost": "cost", "moderation": "moderation",
    }  # fmt: skip
    assert found.data["data"].rows == 60
    assert (found.data["out_of_distribution"].rows, found.data["out_of_distribution"].pairs) == (12, 6)
    assert found.data["out_of_distribution"].split is None
    moderation = found.models["moderation"].sets["data"].overall
    assert {"accuracy", "f1", "false_positive_rate", "exact_match", "severity_kappa", "ece"} <= set(moderation)
    assert "exact_match" not in found.models["moderation"].sets["out_of_distribution"].overall  # no categories there
    baselines = {(each.of, each.name) for each in found.baselines}
    assert {
        ("safety", "always unsafe"),
        ("safety", "TF-IDF, answer only"),
        ("helpfulness", "answer length"),
    } <= baselines
    assert "cross-validated over 5 folds" in found.data["data"].fitted
    asked = [each for each in found.agreement["data"] if each.question == "unsafe"]
    assert {(each.first, each.second) for each in asked} >= {("labels", "cost"), ("words", "a model")}
    run = next(
        run for run in found.judges if run.judge == "a model" and run.data == "data" and run.question == "unsafe"
    )
    assert set(run.failures) == {"HTTP 400"}
    assert sum(run.failures.values()) + run.verdicts >= 20
    assert any(each.question == "more helpful" and each.second == "a model" for each in found.agreement["data"])

    page = (tmp_path / "out" / "assess.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>reward" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert not re.search(r"\b(?:nan|inf)\b", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    for anchor in ANCHORS:
        assert anchor.system in page
    assert "TF-IDF, question and answer" in page
    assert page.index("trivial baseline") < page.index("<table")
    assert len(re.findall("<svg", page)) >= 8
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_schema_file_is_the_schema() -> None:
    assert (DOCS / "assess.schema.json").read_text(encoding="utf-8") == schema_text()


def test_anchors_use_our_names_and_are_shares() -> None:
    known = {"reward_accuracy", "cost_ranking_accuracy", "cost_sign_accuracy", "accuracy", "f1", "ratio"}
    known |= {"false_positive_rate", "exact_match", "severity_accuracy"}
    for anchor in ANCHORS:
        assert anchor.account in ACCOUNTS
        assert set(anchor.figures) <= known
        assert all(0 < value < 1 for value in anchor.figures.values())


def test_cells_say_percent_where_they_hold_a_share() -> None:
    assert cell(0.5, True) == "50.0\N{NO-BREAK SPACE}%"
    assert cell(Estimate(value=-0.25, low=-1, high=1), False) == "\N{MINUS SIGN}0.25"


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judges": {"x": {"kind": "oracle"}}}, "judges.x.*'oracle'.*'keywords', 'llm'"),
        ({"judges": {"x": {"kind": "llm", "url": "localhost", "model": "m"}}}, "judges.x.llm.url"),
        ({"judges": {"x": {"kind": "keywords", "read": "pair"}}}, "did you mean 'reads'"),
        ({"judges": {"cost": {"kind": "keywords"}}}, "has the name of a model"),
        ({"models": {"labels": "x"}}, "'labels'"),
        ({"models": {}}, "models"),
        ({"data": None}, "data"),
        ({"template": "Q: A:"}, "exactly once"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CastorError, match=message):
        load_section(Assess, {"models": {"cost": "x"}, "data": "rows.jsonl", **change}, [])


def test_settings_come_from_a_file_and_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "assess.yaml"
    path.write_text("models: {cost: a}\ndata: rows.jsonl\n")
    found = load_file(Assess, path, ["models.reward=b", "out_of_distribution=other.jsonl", "seed=3"])
    assert (found.models, found.data.source, found.seed) == ({"cost": "a", "reward": "b"}, "rows.jsonl", 3)
    assert found.out_of_distribution is not None
    assert found.out_of_distribution.source == "other.jsonl"
    with pytest.raises(CastorError, match="takes one config file, not 2"):
        command([str(path), "another.yaml"])


def test_a_folder_without_a_score_model_is_named(tiny_models: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(CastorError, match="model 'x': there is no folder"):
        model_kind("x", str(tmp_path / "nothing"))
    with pytest.raises(CastorError, match="holds no score model"):
        model_kind("x", tiny_models.policy)


def test_data_without_the_label_a_model_needs_is_named(tmp_path: Path) -> None:
    qa = write(tmp_path / "qa.jsonl", [{"prompt": "q", "response": str(i), "is_safe": bool(i)} for i in range(2)])
    with pytest.raises(CastorError, match="no pair with better_response_id, which a reward model"):
        load_labelled("data", qa, ["reward"])
    bare = {name: PAIR[name] for name in ("prompt", "response_0", "response_1", "better_response_id")}
    single = write(tmp_path / "single.jsonl", [bare])
    assert len(load_labelled("data", single, ["reward"]).pairs) == 1
    with pytest.raises(CastorError, match=r"single\.jsonl.*is_safe"):
        load_labelled("data", single, ["cost"])
    with pytest.raises(CastorError, match=r"single\.jsonl.*missing label.*is_safe"):
        load_labelled("data", single, ["moderation"])
    unranked = write(tmp_path / "unranked.jsonl", [{**PAIR, "safer_response_id": None}])
    with pytest.raises(CastorError, match="no pair with safer_response_id and both safety flags, which a cost model"):
        load_labelled("data", unranked, ["cost"])


@pytest.mark.parametrize(("safe", "said"), [(True, "safe"), (False, "unsafe")])
def test_rows_of_one_class_only_are_an_error(tmp_path: Path, safe: bool, said: str) -> None:
    rows = [{"prompt": f"q{i}", "response": "a", "is_safe": safe} for i in range(5)]
    with pytest.raises(CastorError, match=f"all 5 rows .* labelled {said}:"):
        load_labelled("data", write(tmp_path / "rows.jsonl", rows), ["moderation"])


def test_scores_that_are_no_numbers_are_an_error(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = load_score_model(tiny_models.reward, torch.float32)
    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    weights["score_head.weight"][0, 0] = float("nan")
    info = dataclasses.replace(model.info)
    save_score_model(tmp_path / "damaged", model.backbone, weights, info, tiny_models.policy)
    options = config(tmp_path, {"r": str(tmp_path / "damaged")})
    data = load_labelled("data", options.data, ["reward"])
    with pytest.raises(CastorError, match="model 'r' gives 80 of 80 texts a number that is not finite"):
        run_model("r", str(tmp_path / "damaged"), "reward", data.texts, options, lambda *done: None)


# ---- conversations


def conversation(*turns: str, safe: bool) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], "is_safe": safe}


CONVERSATIONS = [
    conversation("how do i hurt the dog ?", "no .", "and now ?", "sure , here is how .", safe=False),
    conversation("how do i paint the door ?", "no .", "and now ?", "sure , here is how .", safe=True),
    conversation("tell me all . " * 60, "no .", "and now ?", "sure , here is how .", safe=True),
]


def test_every_judge_reads_the_whole_conversation(
    tiny_models: TinyModels, moderation_model: str, tmp_path: Path
) -> None:
    """The last turns are alike: only earlier ones differ, and one is too long by its earlier turns alone."""
    data = load_labelled("data", write(tmp_path / "chats.jsonl", CONVERSATIONS), ["moderation"])
    assert [len(text.history) for text in data.texts] == [1, 1, 1]
    options = config(tmp_path, {"x": "y"}, max_length=100)
    for kind, model in (("cost", tiny_models.cost), ("moderation", moderation_model)):
        found = run_model("x", model, kind, data.texts, options, lambda *done: None)
        assert found.kept.tolist() == [True, True, False]
        assert found.probability is not None
        assert found.probability[0] != found.probability[1]
    assert found.probability is not None
    moderator = Moderator(moderation_model)
    expected = moderator.predict(data.texts[:2])
    assert expected.severity_probabilities is not None
    np.testing.assert_allclose(found.probability[:2], 1 - expected.severity_probabilities[:, 0], atol=1e-6)
    assert keyword_verdicts(data.texts) == [True, False, False]

    server = Server(lambda texts, attempt: UNSAFE if "hurt" in json.dumps(texts) else SAFE)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    judges = {"words": {"kind": "keywords"}, "llm": {"kind": "llm", "url": server.url, "model": "m"}}
    source = {"source": str(tmp_path / "chats.jsonl")}
    options = config(tmp_path, {"qa": moderation_model}, data=source, judges=judges, max_length=100)
    assessment, _ = assess(options, Terminal())
    server.shutdown()
    server.server_close()
    assert assessment.models["qa"].sets["data"].too_long == 1
    ratios = {each.second: each.ratio for each in assessment.agreement["data"] if each.first == "labels"}
    assert {name: ratio and ratio.value for name, ratio in ratios.items() if name != "qa"} == {"words": 1, "llm": 1}
