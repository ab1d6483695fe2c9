"""Exported classifiers: the code in their cards needs transformers and torch alone, and gives Castor's verdicts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from castor.algorithms.thresholds import Thresholds
from castor.config.data import SyntheticOptions
from castor.config.demo_model import DemoModel
from castor.data.rows.schemas import Exchange, parse_row
from castor.io.errors import CastorError
from castor.model_reference import CARD
from castor.models.export import save_classifier
from castor.models.head_kind import head_kind
from castor.models.load import load_score_model
from castor.models.moderation import ModerationInfo, ModerationModel, export_classifier, save_moderation_model
from castor.models.score import ScoreInfo, ScoreModel
from castor.models.tiny import make_demo_model
from castor.scoring.frozen import FrozenModel
from castor.scoring.moderator import Moderator, predict
from castor.scoring.text_model import TextModel
from castor.synthetic.corpus import qa_rows
from tests.numerics import TINY_MODELS, assert_close

SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "max_position_embeddings": 160}
PAIRS = [(row.prompt, row.response) for row in map(parse_row, qa_rows(SyntheticOptions(taxonomy="pku"), "test", 200))]
FORMATS = {"chat": "chat", "pku": "pku", "own": "Q: {prompt}\nA:"}
A_CHAT = Exchange(*PAIRS[0], (PAIRS[1], PAIRS[2]))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Language models by whether their embeddings are tied; the tokenizer opens every text with a token of its own."""
    made = {}
    for tied in (False, True):
        folder = tmp_path_factory.mktemp("backbones") / f"tied-{tied}"
        make_demo_model(DemoModel(**SMALL), (text for pair in PAIRS for text in pair), 0, folder)
        lm = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=tied)
        with torch.no_grad():
            for parameter in lm.parameters():  # so that every token matters
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        lm.tie_weights()
        lm.save_pretrained(folder)
        assert AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings is tied
        made[tied] = str(folder)
    return made


def code_of(folder):
    """What the card's code defines, run as a reader would, in the folder; it may import nothing but the two."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / CARD).read_text(), re.DOTALL)
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imported == {"torch", "transformers"}
    assert not re.findall(r"^\s+(?:import|from) ", code, re.MULTILINE)
    names = {}
    exec(compile(code, str(folder / CARD), "exec"), names)
    return names


def between(values, low, high):
    """A threshold in the widest gap between two quantiles of values, so that no rounding decides."""
    ranked = np.sort(values)[int(low * len(values)) : int(high * len(values))]
    widest = int(np.diff(ranked).argmax())
    return float(ranked[widest : widest + 2].mean())


def moderation_model(backbone, folder, taxonomy, severity, template, part="pair"):
    """Heads far from zero, and thresholds that call about half of the rows unsafe."""
    torch.manual_seed(3)
    info = ModerationInfo(
        **ModerationInfo.fresh(taxonomy, part, severity).__dict__ | {"temperature": 1.7, "severity_temperature": 0.6}
    )
    model = ModerationModel.from_backbone(backbone, info, torch.float32)
    with torch.no_grad():
        for parameter in (model.label_head.weight, *(model.severity_head.parameters() if severity else ())):
            parameter.normal_(std=0.5)

    def save(info):
        save_moderation_model(folder, model.backbone, dict(model.named_parameters()), info, backbone)

    save(info)
    said = predict(folder, PAIRS, template)
    if severity:  # rows of every level
        above = 1 - said.severity_probabilities[:, 0]
        along = 0.6 * np.log(above / (1 - above)) + float(model.severity_head.cuts()[0])
        levels = [between(along, low, low + 0.2) for low in (0.2, 0.55, 0.75)]
        model.severity_head.set_cuts(torch.tensor(levels, dtype=torch.float64))
        assert_close(model.severity_head.cuts(), np.array(levels), TINY_MODELS)
        save(info)
        said = predict(folder, PAIRS, template)
    labels = tuple(between(column, 0.8, 0.95) for column in said.probabilities.T)  # many rows are above none
    graded = (between(1 - said.severity_probabilities[:, 0], 0.1, 0.4), 1.0) if severity else (None, None)
    limits = Thresholds(labels, between(said.probabilities.max(1), 0.3, 0.7), 0.4, *graded)
    save(ModerationInfo(**info.__dict__ | {"thresholds": limits}))
    return folder


@pytest.mark.parametrize(
    ("taxonomy", "severity", "template", "tied", "part"),
    [
        ("beavertails", False, "chat", False, "pair"),
        ("beavertails", True, "pku", True, "pair"),
        ("pku", False, "own", True, "pair"),
        ("pku", True, "chat", True, "pair"),
        ("pku", True, "pku", False, "pair"),
        ("beavertails", False, "pku", False, "answer"),
        ("pku", True, "chat", False, "question"),
    ],
)
def test_the_code_in_the_card_gives_castors_verdicts(
    backbones, tmp_path, monkeypatch, taxonomy, severity, template, tied, part
):
    form = FORMATS[template]
    folder = moderation_model(backbones[tied], tmp_path / "m", taxonomy, severity, form, part)
    export_classifier(folder, tmp_path / "plain", template=form)
    rows = [*PAIRS, A_CHAT]
    ours = predict(folder, rows, form)
    assert 20 < ours.unsafe.sum() < 180
    assert len({tuple(row) for row in ours.labels.tolist()}) > 5
    assert not severity or set(ours.severity.tolist()) == {0, 1, 2, 3}
    monkeypatch.chdir(tmp_path / "plain")
    theirs = code_of(tmp_path / "plain")["verdicts"](rows)
    assert [row["unsafe"] for row in theirs] == ours.unsafe.tolist()
    names = [[n for n, holds in zip(ours.info.categories, row, strict=True) if holds] for row in ours.labels]
    assert [row["categories"] for row in theirs] == names
    assert [row["severity"] for row in theirs] == (
        [None] * len(rows) if ours.severity is None else ours.severity.tolist()
    )

    # and Castor reads it back as what it is, in its format, without being told
    again = Moderator(tmp_path / "plain").predict(rows)
    assert (again.unsafe == ours.unsafe).all()
    assert (again.labels == ours.labels).all()
    assert_close(again.probabilities, ours.probabilities, TINY_MODELS)
    if severity:
        assert (again.severity == ours.severity).all()
        assert_close(again.severity_probabilities, ours.severity_probabilities, TINY_MODELS)
    assert head_kind(tmp_path / "plain") == taxonomy


@pytest.mark.parametrize(
    ("info", "template", "tied"),
    [
        (ScoreInfo("cost", std=1.7, safe_mean=-0.9, unsafe_mean=1.1), "chat", False),
        (ScoreInfo("cost", std=0.3), "pku", True),
        (ScoreInfo("reward", 0.4, 1.6), "pku", False),
        (ScoreInfo("reward", -0.2, 0.5), "own", True),
    ],
)
def test_the_code_in_the_card_gives_castors_scores(backbones, tmp_path, monkeypatch, info, template, tied):
    torch.manual_seed(5)
    model = ScoreModel.from_backbone(backbones[tied], info, torch.float32).eval()
    torch.nn.init.normal_(model.score_head.weight, std=0.5)
    form, rows = FORMATS[template], [*PAIRS, A_CHAT]
    frozen = FrozenModel("m", model, torch.device("cpu"), 4096)
    judge = TextModel.around(frozen, backbones[tied], form)
    middle = between(judge.outputs([Exchange(*row) for row in rows]), 0.3, 0.7) * info.std + info.mean
    torch.nn.init.constant_(model.score_head.bias, -middle)
    offset = save_classifier(model, tmp_path / "plain", backbones[tied], template=form)
    assert offset == pytest.approx((-middle - info.mean) / info.std)
    ours = judge.outputs([Exchange(*row) for row in rows])
    monkeypatch.chdir(tmp_path / "plain")
    theirs = np.array(code_of(tmp_path / "plain")["scores"](rows))
    assert_close(theirs, ours, TINY_MODELS)
    if info.score_type == "cost":
        assert ((theirs > 0) == (ours > 0)).all()
        assert 20 < (ours > 0).sum() < 180
    again = load_score_model(tmp_path / "plain", torch.float32)
    assert again.info == ScoreInfo(info.score_type, 0.0, info.std, info.safe_mean, info.unsafe_mean)
    frozen = FrozenModel("m", again, torch.device("cpu"), 4096)
    assert_close(
        TextModel.around(frozen, tmp_path / "plain", "auto").outputs([Exchange(*row) for row in rows]),
        ours,
        TINY_MODELS,
    )


def test_a_row_that_is_too_long_is_an_error_of_the_cards_code_too(backbones, tmp_path, monkeypatch):
    export_classifier(moderation_model(backbones[False], tmp_path / "m", "pku", True, "pku"), tmp_path / "plain")
    monkeypatch.chdir(tmp_path / "plain")
    with pytest.raises(ValueError, match="and the model reads 160"):
        code_of(tmp_path / "plain")["verdicts"]([("why " * 200, "because")])


def test_a_tokenizer_that_opens_every_text(backbones, tmp_path, monkeypatch):
    """Its token is not in the texts of the formats: the block has it."""
    source = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(backbones[False]).save_pretrained(source)
    AutoTokenizer.from_pretrained(backbones[False]).save_pretrained(source)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    special = {"<user>": {"id": "<user>", "ids": [3], "tokens": ["<user>"]}}
    parts = [{"SpecialToken": {"id": "<user>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*parts, {"Sequence": {"id": "B", "type_id": 1}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": special,
    }  # fmt: skip
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    folder = moderation_model(str(source), tmp_path / "m", "pku", True, "pku")
    export_classifier(folder, tmp_path / "plain", template="pku")
    block = json.loads((tmp_path / "plain" / "config.json").read_text())["castor"]
    assert block["input"]["leading_ids"] == [3]
    monkeypatch.chdir(tmp_path / "plain")
    found = code_of(tmp_path / "plain")
    assert found["token_ids"](*PAIRS[0]) == Moderator(folder, "pku").encode(*PAIRS[0]).tolist()


def test_the_card_takes_over_what_the_models_card_says(backbones, tmp_path):
    folder = moderation_model(backbones[False], tmp_path / "m", "pku", True, "chat")
    (folder / CARD).write_text(
        "---\nbase_model: some/model\ntags: [mine]\n---\n\n# Title\n\nIntro.\n\n"
        "## How to read it\n\nOtherwise.\n\n## Data\n\nRows.\n"
    )
    export_classifier(folder, tmp_path / "plain")
    card = ModelCard.load(tmp_path / "plain" / CARD)
    assert (card.data.base_model, card.data.library_name) == ("some/model", "transformers")
    assert card.data.tags == ["castor", "mine", "moderation-model"]
    assert card.text.rstrip().endswith("## Data\n\nRows.")
    assert "P(severity > 0) exceeds" in card.text
    assert "Otherwise" not in card.text
    (folder / CARD).write_text("---\n[\n---\n")
    with pytest.raises(CastorError, match=f"{CARD} cannot be read"):
        export_classifier(folder, tmp_path / "again")
    assert not Path(tmp_path / "again").exists()
