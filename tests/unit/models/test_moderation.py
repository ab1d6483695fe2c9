"""Moderation: losses against float64 formulas, decisions, calibration, files, classifier costs, and what is refused."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.metrics import cohen_kappa_score, f1_score
from transformers import AutoModelForSequenceClassification

from castor.algorithms.moderation import (
    UNKNOWN,
    Targets,
    any_label_loss,
    class_weights,
    label_loss,
    moderation_loss,
    severity_loss,
)
from castor.algorithms.thresholds import Thresholds, best_threshold, decide, fit_temperature, fit_thresholds
from castor.cli.export import Layout, Precision, export
from castor.config.data import SyntheticOptions
from castor.config.demo_model import DemoModel
from castor.config.judge import Classifier
from castor.config.moderation import Moderation
from castor.config.pipeline import Config
from castor.config.serve import Serve
from castor.data.rows.harm_labels import moderation_targets
from castor.data.rows.schemas import Exchange, QARow, parse_row
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.io.errors import CastorError
from castor.model_reference import ModelReference
from castor.models.classifier_cost import ClassifierCost
from castor.models.load import load_score_model, read_score_info
from castor.models.moderation import (
    HEAD_FILE,
    MODERATION_FILE,
    ModerationInfo,
    ModerationModel,
    export_classifier,
    read_moderation_info,
    save_moderation_model,
)
from castor.models.tiny import make_demo_model
from castor.packing import pack_rows
from castor.run.check import check
from castor.scoring.moderator import Moderator, predict, verdicts
from castor.synthetic.corpus import qa_rows
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES
from serve.judges import load_scores
from serve.targets import Judge
from tests.numerics import TINY_MODELS, assert_close
from tests.plans import plan_of
from trainers.supervised.tasks import make_task

DATA = {"source": "synthetic"}
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "max_position_embeddings": 160}
ROWS = [parse_row(row) for row in qa_rows(SyntheticOptions(), "train", 90)]
PAIRS = [(row.prompt, row.response) for row in ROWS[:7]]
logits = st.floats(-30, 30)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moderation") / "model"
    make_demo_model(DemoModel(**SMALL), (text for row in ROWS for text in (row.prompt, row.response)), 0, folder)
    return str(folder)


def made(backbone, folder, taxonomy="pku", severity=True, **changes):
    """A saved moderation model with random heads that are far from zero."""
    torch.manual_seed(3)
    fresh = ModerationInfo.fresh(taxonomy, changes.pop("input", "pair"), severity)
    model = ModerationModel.from_backbone(backbone, fresh, torch.float32)
    with torch.no_grad():
        for parameter in (model.label_head.weight, *(model.severity_head.parameters() if severity else ())):
            parameter.normal_(std=2.0)
    info = ModerationInfo(**(fresh.__dict__ | changes))
    save_moderation_model(folder, model.backbone, dict(model.named_parameters()), info, backbone)
    return folder


@pytest.fixture(scope="module")
def graded(backbone, tmp_path_factory):
    return made(backbone, tmp_path_factory.mktemp("saved") / "graded", temperature=1.7, severity_temperature=0.6)


# losses


@settings(max_examples=50)
@given(st.data())
def test_the_loss_is_the_formula(data):
    n, k = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    z = np.array(data.draw(st.lists(logits, min_size=n * (k + 3), max_size=n * (k + 3)))).reshape(n, k + 3)
    flags = data.draw(st.lists(st.booleans(), min_size=n * k, max_size=n * k))
    unsafe = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    stated = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    level = data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n))
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=k, max_size=k))
    labels = np.array(flags).reshape(n, k) & np.array(unsafe)[:, None]
    labelled = np.array(stated) | ~np.array(unsafe)
    severity = [0 if not u else (s if s != 0 else UNKNOWN) for u, s in zip(unsafe, level, strict=True)]
    expected = []
    for i in range(n):
        if labelled[i]:
            terms = [
                w * math.log1p(math.exp(-x)) if y else math.log1p(math.exp(x))
                for w, x, y in zip(weights, z[i, :k], labels[i], strict=True)
            ]
            loss = sum(terms) / k
        else:
            loss = 0.7 * -math.log(-math.expm1(sum(-math.log1p(math.exp(x)) for x in z[i, :k])))
        for cut in range(3):
            if severity[i] == UNKNOWN and cut > 0:
                continue
            above = severity[i] > cut if severity[i] != UNKNOWN else unsafe[i]
            x = z[i, k + cut]
            loss += 0.4 * math.log1p(math.exp(-x if above else x)) / 3
        expected.append(loss)
    targets = Targets(*(torch.tensor(x) for x in (labels, labelled, unsafe, severity)))
    tensor = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    loss = moderation_loss(tensor, targets, torch.tensor(weights, dtype=torch.float64), 0.7, 0.4)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-6, atol=1e-6)
    loss.sum().backward()
    assert torch.isfinite(tensor.grad).all()


def test_worked_losses():
    one = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    assert float(label_loss(one, torch.tensor([[True, False]]), torch.tensor([2.0, 9.0]).double())) == pytest.approx(
        (2 * math.log(2) + math.log(4)) / 2
    )
    assert float(any_label_loss(one)) == pytest.approx(-math.log(1 - 0.5 * 0.25))
    moderate = severity_loss(torch.zeros(1, 3).double(), torch.tensor([2]), torch.tensor([True]))
    assert float(moderate) == pytest.approx(math.log(2))
    only_unsafe = severity_loss(torch.tensor([[0.0, 9, -9]]).double(), torch.tensor([UNKNOWN]), torch.tensor([True]))
    assert float(only_unsafe) == pytest.approx(math.log(2) / 3)


@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_extreme_logits_give_finite_losses_and_gradients(value):
    z = torch.full((2, 4), value, requires_grad=True)
    loss = any_label_loss(z)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(z.grad).all()


def test_class_weights():
    labels = np.zeros((100, 4), dtype=bool)
    labels[:50, 0] = labels[:10, 1] = labels[:1, 2] = True
    np.testing.assert_allclose(class_weights(labels, "sqrt", 5.0), [1.0, 3.0, 5.0, 1.0])
    np.testing.assert_allclose(class_weights(labels, "balanced", 20.0), [1.0, 9.0, 20.0, 1.0])
    np.testing.assert_allclose(class_weights(~labels, "balanced", 4.0), [1.0, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(class_weights(labels, "none", 5.0), np.ones(4))


# labels


def qa(safe, category=None, severity=None, prompt="p"):
    return QARow(prompt, "r", safe, None if category is None else frozenset(category), severity)


def test_what_a_row_leaves_open():
    rows = [
        qa(True), qa(True, [], 0), qa(False), qa(False, ["Violence"], 2), qa(False, [], 3), qa(False, ["Drugs"], 0),
    ]  # fmt: skip
    targets = moderation_targets(rows, PKU_CATEGORIES, map_taxonomy=False, severity=True)
    assert targets.labelled.tolist() == [True, True, False, True, True, True]
    assert targets.unsafe.tolist() == [False, False, True, True, True, True]
    assert targets.severity.tolist() == [0, 0, UNKNOWN, 2, 3, UNKNOWN]
    assert targets.labels.sum(1).tolist() == [0, 0, 0, 1, 0, 1]
    assert targets.labels[3, PKU_CATEGORIES.index("Violence")]


def test_the_other_taxonomy_is_translated_only_when_the_config_says_so():
    rows = [qa(True), qa(False, ["self_harm", "animal_abuse"])]
    with pytest.raises(CastorError, match=r"'animal_abuse', which is of the other taxonomy.*map_taxonomy"):
        moderation_targets(rows, PKU_CATEGORIES, map_taxonomy=False, severity=False)
    labels = moderation_targets(rows, PKU_CATEGORIES, map_taxonomy=True, severity=False).labels[1]
    names = {name for name, holds in zip(PKU_CATEGORIES, labels, strict=True) if holds}
    assert names == {"Physical Harm", "Psychological Harm", "Animal Abuse"}
    back = moderation_targets([qa(True), qa(False, ["Drugs"])], BEAVERTAILS_CATEGORIES, True, False).labels[1]
    assert [n for n, holds in zip(BEAVERTAILS_CATEGORIES, back, strict=True) if holds] == [
        "drug_abuse,weapons,banned_substance"
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([qa(True), qa(True)], "is_safe is true in every row, and both classes are needed"),
        ([qa(False, ["Violence"], 1)], "is_safe is false in every row"),
        ([qa(True), qa(False)], "no row names a harm category"),
        ([qa(True), qa(False, ["Violence"])], "no unsafe row has a severity_level"),
    ],
)
def test_rows_that_cannot_teach_it(rows, message):
    with pytest.raises(CastorError, match=message):
        moderation_targets(rows, PKU_CATEGORIES, map_taxonomy=False, severity=True)


# thresholds


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=30),
    st.sampled_from(["f1", "balanced_accuracy"]),
    st.sampled_from([0.0, 0.3]),
)
def test_no_other_threshold_does_better(rows, objective, floor):
    scores, truth = np.array([s / 20 for s, _ in rows]), np.array([y for _, y in rows])
    chosen = best_threshold(scores, truth, objective, floor, 0.5)
    if truth.all() or not truth.any():
        assert chosen == 0.5
        return

    def value(threshold):
        flagged = scores > threshold
        hits = (flagged & truth).sum()
        if objective == "f1":
            return 2 * hits / (flagged.sum() + truth.sum())
        return (hits / truth.sum() + (~flagged & ~truth).sum() / (~truth).sum()) / 2

    assert chosen >= floor
    others = [value(t) for t in np.linspace(floor, 1, 101)]
    assert value(chosen) >= max(others) - 1e-12


def test_thresholds_of_labels_with_too_few_rows_stay_at_one_half():
    rng = np.random.default_rng(0)
    labels = np.zeros((40, 3), dtype=bool)
    labels[:2, 0], labels[:12, 1] = True, True
    p = np.where(labels, 0.3, 0.1) + rng.uniform(0, 0.05, (40, 3))
    unsafe = labels.any(1)
    fitted = fit_thresholds(p, None, labels, np.ones(40, bool), unsafe, objective="f1", floor=0.2)
    assert fitted.labels[0] == fitted.labels[2] == 0.5
    assert 0.2 <= fitted.labels[1] < 0.3
    assert decide(p, None, fitted).unsafe.tolist() == unsafe.tolist()
    assert (p.mean(1) > fitted.mean).tolist() == unsafe.tolist()
    assert fitted.severity is None


def test_unsafe_goes_with_categories_and_with_severity():
    p = np.array([[0.9, 0.1], [0.3, 0.3], [0.3, 0.3], [0.7, 0.8]])
    up_to = np.array([[0.9, 0.6, 0.1], [0.9, 0.2, 0.1], [0.1, 0.9, 0.9], [0.6, 0.6, 0.6]])
    verdict = decide(p, up_to, Thresholds((0.5, 0.6), 0.5, 0.25, 0.5, 1.0))
    assert verdict.unsafe.tolist() == [True, True, False, True]
    # row 1: no label above its threshold, the nearest one is named; row 2 is safe, so it has neither label nor level
    assert verdict.labels.tolist() == [[True, False], [True, False], [False, False], [True, True]]
    assert verdict.severity.tolist() == [2, 1, 0, 3]
    plain = decide(p, None, Thresholds((0.5, 0.6), 0.75, 0.25))
    assert plain.unsafe.tolist() == [True, False, False, True]
    assert plain.severity is None
    exactly = decide(np.array([[0.75, 0.0]]), None, Thresholds((0.5, 0.6), 0.75, 0.25))
    assert not exactly.unsafe.any()


def test_a_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(20_000, 2))
    truth = rng.uniform(size=honest.shape) < 1 / (1 + np.exp(-honest))
    assert fit_temperature(3 * honest, truth) == pytest.approx(3.0, rel=0.05)


# the model and its files


def test_the_severity_probabilities_never_contradict_each_other(graded):
    verdict = predict(graded, PAIRS)
    assert verdict.severity_probabilities.shape == (7, 4)
    assert (verdict.severity_probabilities >= 0).all()
    np.testing.assert_allclose(verdict.severity_probabilities.sum(1), 1)
    assert verdict.probabilities.shape == verdict.labels.shape == (7, 19)
    assert (verdict.labels.any(1) == verdict.unsafe).all()
    assert ((verdict.severity > 0) == verdict.unsafe).all()


def test_a_model_is_what_was_saved(backbone, graded):
    info = read_moderation_info(graded)
    assert (info.temperature, info.severity_temperature, info.categories) == (1.7, 0.6, PKU_CATEGORIES)
    model = ModerationModel.load(graded, torch.float32).eval()
    heads = load_file(graded / HEAD_FILE)
    tokenizer = PromptTemplate(load_tokenizer(str(graded)))
    tokens = [*tokenizer.encode_prompt(PAIRS[0][0]), *tokenizer.encode_response(PAIRS[0][1])]
    with torch.no_grad():
        hidden = model.backbone(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1].double()
    raw = heads["label_head.weight"].double() @ hidden
    verdict = predict(graded, PAIRS[:1])
    assert_close(verdict.probabilities[0], torch.sigmoid(raw / 1.7), TINY_MODELS)
    cut = heads["severity_head.first_cut"].double() + torch.cumsum(
        torch.cat([torch.zeros(1), torch.nn.functional.softplus(heads["severity_head.gaps"])]).double(), 0
    )
    above = torch.sigmoid((heads["severity_head.direction.weight"].double() @ hidden - cut) / 0.6)
    levels = [1 - above[0], above[0] - above[1], above[1] - above[2], above[2]]
    assert_close(verdict.severity_probabilities[0], levels, TINY_MODELS)


def test_batching_changes_no_verdict(graded):
    together = Moderator(graded).predict(PAIRS)
    apart = Moderator(graded, batch_tokens=1).predict(PAIRS)
    assert_close(together.probabilities, apart.probabilities, TINY_MODELS)


def test_a_baseline_sees_only_its_part(backbone, tmp_path):
    for kind, other in (("answer", ("another question", PAIRS[0][1])), ("question", (PAIRS[0][0], "another answer"))):
        folder = made(backbone, tmp_path / kind, "beavertails", severity=False, input=kind)
        p = predict(folder, [PAIRS[0], other, PAIRS[-1]]).probabilities
        assert_close(p[0], p[1], TINY_MODELS)
        assert not np.allclose(p[0], p[2])


@pytest.mark.parametrize("taxonomy", ["beavertails", "pku"])
def test_the_exported_classifier_gives_the_same_probabilities(backbone, tmp_path, taxonomy):
    folder = made(backbone, tmp_path / "m", taxonomy, severity=taxonomy == "pku", temperature=1.3)
    export_classifier(folder, tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    assert plain.config.problem_type == "multi_label_classification"
    moderator = Moderator(folder)
    sequences = [moderator.encode(*pair).tolist() for pair in PAIRS]
    width = max(map(len, sequences))
    pad = plain.config.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in sequences])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences])
    with torch.no_grad():
        p = torch.sigmoid(plain(input_ids=ids, attention_mask=mask).logits).numpy()
    ours = moderator.predict(PAIRS)
    count = len(ours.info.categories)
    assert_close(p[:, :count], ours.probabilities, TINY_MODELS)
    names = [*ours.info.categories, *["severity"] * ours.info.severity]
    assert list(plain.config.id2label.values()) == names
    # and it is read back as what it is, its temperatures in its heads
    again = ModerationModel.load(tmp_path / "plain", torch.float32)
    assert again.info == replace(ours.info, temperature=1.0, severity_temperature=1.0)


def test_the_export_command_takes_moderation_models(backbone, tmp_path, capsys):
    folder = made(backbone, tmp_path / "m", "pku", severity=True)
    export(str(folder), tmp_path / "plain", Layout.SEQUENCE_CLASSIFICATION, Precision.BFLOAT16)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert (plain.dtype, plain.config.num_labels) == (torch.bfloat16, 20)
    assert "its weights are rounded" in capsys.readouterr().out
    with pytest.raises(CastorError, match="--as sequence-classification only"):
        export(str(folder), tmp_path / "pku", Layout.PKU)


def test_a_wrong_head_is_one_clear_error(backbone, tmp_path, tiny_models):
    moderation = made(backbone, tmp_path / "m", "beavertails", severity=False)
    for read in (read_score_info, lambda folder: load_score_model(folder, torch.float32)):
        with pytest.raises(CastorError, match="holds a moderation model, and a reward or cost model is needed here"):
            read(moderation)
    for read in (read_moderation_info, Moderator):
        with pytest.raises(CastorError, match="holds a score model, and a moderation model is needed here"):
            read(tiny_models.cost)


def test_earlier_turns_of_a_chat_are_part_of_the_question(backbone, tmp_path):
    moderator = Moderator(made(backbone, tmp_path / "m", "beavertails", severity=False))
    question, answer = PAIRS[0]
    alone, later = moderator.encode(question, answer), moderator.encode(question, answer, (PAIRS[1],))
    assert len(later) > len(alone)
    probabilities = moderator.predict([(question, answer), Exchange(question, answer, (PAIRS[1],))]).probabilities
    assert not np.allclose(probabilities[0], probabilities[1])


def beaver_dam(folder, out, **config):
    """The exported classifier with another config, as somebody else would have published it."""
    export_classifier(folder, out)
    values = json.loads((out / "config.json").read_text()) | {"castor": None} | config
    (out / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return out


def test_a_published_classifier_with_or_without_names(backbone, tmp_path):
    folder = made(backbone, tmp_path / "m", "beavertails", severity=False)
    plain = {"id2label": {str(i): f"LABEL_{i}" for i in range(14)}, "label2id": None, "problem_type": None}
    unnamed = predict(beaver_dam(folder, tmp_path / "unnamed", **plain), PAIRS)
    assert unnamed.info.categories == BEAVERTAILS_CATEGORIES
    turned = dict(enumerate(reversed(BEAVERTAILS_CATEGORIES)))
    named = predict(beaver_dam(folder, tmp_path / "named", id2label=turned, label2id=None), PAIRS)
    assert named.info.categories == tuple(turned.values())
    np.testing.assert_array_equal(named.probabilities, unnamed.probabilities)
    assert (named.unsafe == (named.probabilities.max(1) > 0.5)).all()


def test_a_published_classifier_in_the_old_weight_format(backbone, tmp_path):
    out = beaver_dam(made(backbone, tmp_path / "m", "beavertails", severity=False), tmp_path / "old")
    expected = predict(out, PAIRS).probabilities
    torch.save(load_file(out / "model.safetensors"), out / "pytorch_model.bin")
    (out / "model.safetensors").unlink()
    np.testing.assert_array_equal(predict(out, PAIRS).probabilities, expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"0": "safe", "1": "unsafe"}, "label2id": None}, r"has 2 labels \(safe, unsafe, ...\), neither"),
        ({"problem_type": "single_label_classification"}, "single_label_classification model"),
        ({"architectures": ["LlamaForCausalLM"]}, "holds no moderation model"),
        ({"id2label": {str(i): f"LABEL_{i}" for i in range(19)}, "label2id": None}, "not the linear head score.weight"),
    ],
)
def test_other_classifiers_are_refused(backbone, tmp_path, config, message):
    folder = beaver_dam(made(backbone, tmp_path / "m", "beavertails", severity=False), tmp_path / "other", **config)
    with pytest.raises(CastorError, match=message):
        ModerationModel.load(folder, torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": list(BEAVERTAILS_CATEGORIES)}, "its 14 categories are not those of taxonomy 'pku'"),
        ({"taxonomy": "mine"}, "not those of taxonomy 'mine'"),
        ({"severity": False}, "a severity head and the thresholds of a severity go together"),
        ({"temperature": 0}, "temperatures must be positive"),
        ({"colour": "blue"}, "does not describe a moderation model"),
    ],
)
def test_a_damaged_description_is_refused(graded, tmp_path, changes, message):
    folder = shutil.copytree(graded, tmp_path / "m")
    values = json.loads((folder / MODERATION_FILE).read_text())
    (folder / MODERATION_FILE).write_text(json.dumps(values | changes))
    with pytest.raises(CastorError, match=message):
        ModerationModel.load(folder, torch.float32)


def test_a_wrong_head_is_refused(graded, tmp_path):
    folder = shutil.copytree(graded, tmp_path / "m")
    heads = load_file(folder / HEAD_FILE)
    save_file(heads | {"label_head.weight": heads["label_head.weight"][:14].clone()}, folder / HEAD_FILE)
    with pytest.raises(CastorError, match=r"not that of a model with 19 categories.*\(14, 16\), not \(19, 16\)"):
        ModerationModel.load(folder, torch.float32)
    save_file({"label_head.weight": heads["label_head.weight"]}, folder / HEAD_FILE)
    with pytest.raises(CastorError, match="is missing"):
        ModerationModel.load(folder, torch.float32)
    (folder / HEAD_FILE).unlink()
    with pytest.raises(CastorError, match="not whole"):
        ModerationModel.load(folder, torch.float32)


def test_it_fails_closed(graded, tmp_path):
    with pytest.raises(CastorError, match=r"more than the moderation model .*'s context of 160"):
        predict(graded, [PAIRS[0], ("why " * 200, "because")])
    folder = shutil.copytree(graded, tmp_path / "m")
    heads = load_file(folder / HEAD_FILE)
    heads["label_head.weight"][3, 0] = float("nan")
    save_file(heads, folder / HEAD_FILE)
    with pytest.raises(CastorError, match="gives 7 of 7 texts a number that is not finite"):
        predict(folder, PAIRS)
    info = read_moderation_info(graded)
    with pytest.raises(CastorError, match=r"outputs of shape \(2, 19\) are not those"):
        verdicts(np.zeros((2, 19)), info)


def test_no_rows_no_verdicts(graded):
    verdict = predict(graded, [])
    assert verdict.probabilities.shape == (0, 19)
    assert verdict.unsafe.shape == (0,)


# the costs of the ablation


def costs(folder, **classifier):
    moderator = Moderator(folder)
    cost = ClassifierCost(moderator.model, Classifier(**classifier)).eval()
    tokens = [moderator.encode(*pair) for pair in PAIRS]
    lengths = np.array([len(t) for t in tokens])
    rows = pack_rows(np.concatenate(tokens), lengths, 64)
    with torch.no_grad():
        values = cost(rows, torch.from_numpy(lengths.cumsum() - 1))
        assert cost(rows, torch.empty(0, dtype=torch.int64)).shape == (0,)
    assert (values.dtype, cost.info.score_type) == (torch.float32, "cost")
    return values.numpy(), moderator.predict(PAIRS)


def test_classifier_costs(backbone, tmp_path):
    thresholds = Thresholds(tuple(np.linspace(0.3, 0.6, 19)), 0.8, 0.4, 0.45, 1.2)
    folder = made(backbone, tmp_path / "m", thresholds=thresholds)
    value, verdict = costs(folder, reduce="max")
    assert_close(value, verdict.probabilities.max(1) - 0.8, TINY_MODELS)
    value, _ = costs(folder, reduce="mean")
    assert_close(value, verdict.probabilities.mean(1) - 0.4, TINY_MODELS)
    value, _ = costs(folder, reduce="expected_severity")
    expected = verdict.severity_probabilities @ np.arange(4)
    assert_close(value, expected - 1.2, TINY_MODELS)
    names = ["Violence", "Drugs"]
    value, _ = costs(folder, reduce=names)
    where = [PKU_CATEGORIES.index(name) for name in names]
    margins = verdict.probabilities[:, where] - np.array(thresholds.labels)[where]
    assert_close(value, margins.max(1), TINY_MODELS)


def test_a_served_cost_is_the_same(backbone, tmp_path):
    folder = made(backbone, tmp_path / "m", thresholds=Thresholds((0.5,) * 19, 0.8, 0.4, 0.45, 1.2))
    for classifier in (Classifier(), Classifier(reduce="expected_severity", margin="logit")):
        expected, _ = costs(folder, **classifier.model_dump())
        judge = Judge("m", ModelReference(str(folder)), classifier)
        served = load_scores("cost", judge, "auto", Serve(run_dir=tmp_path))
        found = served.outputs([Exchange(*pair) for pair in PAIRS])
        assert_close(found, expected, TINY_MODELS)


def test_zero_is_the_boundary_of_the_decision(backbone, tmp_path):
    soft = {"taxonomy": "beavertails", "severity": False, "temperature": 5.0}
    largest = np.sort(predict(made(backbone, tmp_path / "a", **soft), PAIRS).probabilities.max(1))
    limits = Thresholds((0.5,) * 14, float(largest[2:4].mean()), 0.3)
    folder = made(backbone, tmp_path / "m", **soft, thresholds=limits)
    for margin in ("probability", "logit"):
        value, verdict = costs(folder, reduce="max", margin=margin)
        assert ((value > 0) == verdict.unsafe).all()
        assert 0 < verdict.unsafe.sum() < len(PAIRS)


def test_a_cost_the_model_cannot_give(backbone, tmp_path):
    plain = ModerationModel.load(made(backbone, tmp_path / "m", "beavertails", False), torch.float32)
    with pytest.raises(CastorError, match="no severity head"):
        ClassifierCost(plain, Classifier(reduce="expected_severity"))
    with pytest.raises(CastorError, match="taxonomy beavertails, which has no category 'Violence'"):
        ClassifierCost(plain, Classifier(reduce=["self_harm", "Violence"]))
    answers = ModerationModel.load(made(backbone, tmp_path / "a", "beavertails", False, input="answer"), torch.float32)
    with pytest.raises(CastorError, match="sees the answer only"):
        ClassifierCost(answers, Classifier())


# config


def config(**changes):
    signal = {"role": "constraint", "model": "stage:qa", "threshold": 0.0, "classifier": {"reduce": "max"}}
    helpful = {"role": "objective", "model": "stage:reward"}
    run = {"steps": 1, "signals": {"helpful": helpful, "harm": signal | changes}, "multipliers": {}}
    stage = {"data": DATA}
    return {
        "model": {"max_position_embeddings": 1024}, "sft": stage, "reward": stage, "cost": stage,
        "moderation": {"qa": stage, "answer_only": stage | {"input": "answer"}}, "rlhf": {"run": run},
    }  # fmt: skip


def test_a_constraint_may_be_a_moderation_stage():
    check(plan_of(config()))
    with pytest.raises(CastorError, match="needed moderation model, got cost model"):
        check(plan_of(config(model="stage:cost")))
    with pytest.raises(CastorError, match="needed cost model, got moderation model"):
        check(plan_of(config(classifier=None)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None, "unsafe_share": 0.1}, "make it a constraint with one of them"),
        ({"classifier": {"reduce": ["self_harms"]}}, "'self_harm' in beavertails"),
        ({"classifier": {"reduce": []}}, "name at least one"),
    ],
)
def test_signals_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Config.model_validate(config(**changes))


def test_names_of_stages_are_folders():
    for name in ("sft", "a b", "run"):
        with pytest.raises(CastorError, match="cannot name a folder of the run"):
            plan_of(config() | {"moderation": {name: {"data": DATA}}})


# the task


def pku_rows(count=90):
    return [parse_row(row) for row in qa_rows(SyntheticOptions(taxonomy="pku"), "train", count)]


@pytest.mark.parametrize("kind", ["pair", "answer", "question"])
def test_what_a_task_shows_its_model(kind):
    task = make_task(Moderation(data=DATA, input=kind), ROWS, "m")
    ((question, answer, _),) = next(iter(task.texts()))
    assert question == ("" if kind == "answer" else ROWS[0].prompt)
    assert answer == ("" if kind == "question" else ROWS[0].response)


def test_the_task_is_the_loss_of_its_rows(backbone):
    rows = pku_rows(12)
    stage = Moderation(data=DATA, taxonomy="pku", severity=True, severity_weight=0.3)
    task = make_task(stage, rows, backbone)
    template = PromptTemplate(load_tokenizer(backbone))
    samples = Samples(template, task.texts(), max_length=160)
    torch.manual_seed(0)
    model = task.load(torch.float32).eval()
    chosen = [5, 0, 7]
    with torch.no_grad():
        packed = samples.pack(np.array(chosen), 64)
        total = float(task.loss(model, packed, chosen))
        single = [float(task.loss(model, samples.pack(np.array([i]), 64), [i])) for i in chosen]
        outputs = task.observe(model, packed)
    assert_close(total, sum(single), TINY_MODELS)
    direct = moderation_loss(outputs, task.targets[torch.tensor(chosen)], task.label_weights, 1.0, 0.3)
    assert_close(total, direct.sum(), TINY_MODELS)


def test_metrics_of_perfect_outputs_and_the_saved_calibration(backbone, tmp_path):
    rows = pku_rows(90)
    task = make_task(Moderation(data=DATA, taxonomy="pku", severity=True), rows, backbone)
    noise = torch.randn(90, 22, generator=torch.Generator().manual_seed(0)) * 0.05
    label_outputs = torch.where(task.targets.labels, 2.0, -2.0)
    above = torch.where(task.targets.severity[:, None] > torch.arange(3), 2.0, -2.0)
    outputs = torch.cat([label_outputs, above], 1) + noise - 1.0  # all shifted: 0.5 is not the best threshold
    metrics = task.measure([outputs[:40], outputs[40:]], list(range(90)))
    assert metrics["accuracy"] == metrics["f1"] == metrics["severity_accuracy"] == metrics["severity_kappa"] == 1.0
    assert metrics["false_positive_rate"] == 0.0
    model = task.load(torch.float32)
    task.save(tmp_path / "m", model, dict(model.named_parameters()), [outputs[:40], outputs[40:]])
    info = read_moderation_info(tmp_path / "m")
    assert info.temperature < 1  # the outputs are right more often than they claim
    assert (info.taxonomy, info.severity, info.input) == ("pku", True, "pair")
    assert 0.0 < info.thresholds.severity < 1.0


def test_metrics_are_scikit_learns(backbone):
    rows = pku_rows(90)
    task = make_task(Moderation(data=DATA, taxonomy="pku", severity=True), rows, backbone)
    outputs = torch.randn(90, 22, generator=torch.Generator().manual_seed(1))
    from castor.algorithms.thresholds import Decision
    from trainers.supervised.tasks.moderation import moderation_metrics

    rng = np.random.default_rng(0)
    unsafe, levels = rng.random(90) < 0.5, rng.integers(0, 4, 90)
    labels = rng.random((90, 19)) < 0.1
    order = rng.permutation(90)
    pieces = [(part, Decision(unsafe[part], labels[part], levels[part])) for part in np.array_split(order, 3)]
    metrics = moderation_metrics(pieces, task.targets)
    truth, actual = task.targets.unsafe.numpy(), task.targets.labels.numpy()
    assert metrics["f1"] == pytest.approx(f1_score(truth, unsafe))
    assert metrics["false_positive_rate"] == pytest.approx((unsafe & ~truth).sum() / (~truth).sum())
    assert metrics["exact_match"] == pytest.approx((labels == actual).all(1).mean())
    kappa = cohen_kappa_score(levels, task.targets.severity.numpy(), weights="quadratic")
    assert metrics["severity_kappa"] == pytest.approx(kappa)
    with pytest.raises(CastorError, match="output for row 2 is not finite"):
        task.measure([outputs.index_fill(0, torch.tensor([2]), float("nan"))], list(range(90)))


def test_validation_rows_of_one_kind_are_an_error(backbone):
    task = make_task(Moderation(data=DATA), ROWS, backbone)
    safe = [i for i, row in enumerate(ROWS) if row.is_safe]
    with pytest.raises(CastorError, match="are all safe: raise validation_share"):
        task.measure([torch.zeros(len(safe), 14)], safe)
