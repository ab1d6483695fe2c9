"""Training from rows on disk: the same samples as from a list, and only a handle goes to the workers."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch

from castor.algorithms.moderation import class_weights
from castor.config.data import DataSource, SyntheticOptions
from castor.config.demo_model import DemoModel
from castor.config.moderation import Moderation
from castor.config.pipeline import Config
from castor.config.preference import Cost, Reward
from castor.config.supervised import SFT
from castor.data.rows.load import stream_demonstrations, stream_preferences, stream_qa
from castor.data.rows.mixture import mix
from castor.data.rows.schemas import PreferenceRow, QARow
from castor.data.rows.store import RowStore
from castor.data.sources.report import RowReport
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.io.errors import CastorError
from castor.io.files import write_jsonl
from castor.models.tiny import make_demo_model
from castor.run.plan import make_plan
from tests.conftest import SHARED_DATA
from tests.plans import run_of
from trainers.supervised.driver import split_by_prompt
from trainers.supervised.tasks import make_task

REAL_ROWS = SHARED_DATA / "beavertails" / "beavertails-30k-test-part.jsonl.gz"
DATA = [
    DataSource(limit=40, weight=2),
    DataSource(limit=30, weight=1, replacement=True, synthetic=SyntheticOptions(seed=3)),
]
KINDS = {
    "sft": (SFT(data=DATA), QARow, stream_demonstrations),
    "reward": (Reward(data=DATA), PreferenceRow, stream_preferences),
    "cost": (Cost(data=DATA), PreferenceRow, stream_preferences),
    "sign": (Cost(data=DATA, loss="sign"), QARow, partial(stream_qa, need=("is_safe",))),
    "moderation": (Moderation(data=DATA), QARow, partial(stream_qa, need=("is_safe",))),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    rows = stream_demonstrations(DataSource(limit=60), RowReport())
    small = DemoModel(hidden_size=16, layers=1, heads=2, intermediate_size=24)
    make_demo_model(small, (text for row in rows for text in (row.prompt, row.response)), 0, path)
    return PromptTemplate(load_tokenizer(str(path)))


@pytest.mark.parametrize("kind", KINDS)
def test_stored_rows_give_the_samples_of_a_list(kind, template, tmp_path):
    """Tokens, the order and the split of the rows, and what the task learns from their labels."""
    stage, row_type, stream = KINDS[kind]
    lists = [list(stream(source, RowReport())) for source in DATA]
    stores = [RowStore.write(tmp_path / f"{i}.arrow", row_type, iter(rows)) for i, rows in enumerate(lists)]
    listed, stored = list(mix(DATA, lists, 1)), pickle.loads(pickle.dumps(mix(DATA, stores, 1)))
    assert len(stored) == len(listed) >= 60
    splits = [split_by_prompt(rows, 0.2, 7) for rows in (listed, stored)]
    for one, other in zip(*splits, strict=True):
        np.testing.assert_array_equal(one, other)
    training = splits[0][0]
    tasks = [make_task(stage, rows, "m", training) for rows in (listed, stored)]
    samples = [Samples(template, task.texts(), 64) for task in tasks]
    np.testing.assert_array_equal(samples[0].kept, samples[1].kept)
    whole = [each.pack(np.arange(len(each)), 64) for each in samples]
    assert torch.equal(whole[0].rows.input_ids, whole[1].rows.input_ids)
    assert torch.equal(whole[0].prompt_lengths, whole[1].prompt_lengths)
    if kind in ("cost", "sign"):
        np.testing.assert_array_equal(tasks[0].safe, tasks[1].safe)
    if kind == "moderation":
        assert torch.equal(tasks[0].targets.labels, tasks[1].targets.labels)
        assert torch.equal(tasks[0].label_weights, tasks[1].label_weights)


def test_only_a_handle_is_sent(tmp_path, monkeypatch):
    """About 8 bytes a row, whatever the rows hold, and paths that hold in another working directory."""
    rows = [QARow(f"p {i}", "word " * 200) for i in range(1000)]
    monkeypatch.chdir(tmp_path)
    mixture = mix([DataSource()], [RowStore.write("rows.arrow", QARow, rows)], 0)
    sent = pickle.dumps(mixture)
    assert len(sent) < 20 * len(rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert list(pickle.loads(sent)) == rows


def test_class_weights_are_those_of_the_training_rows():
    rows = list(stream_qa(DataSource(limit=200), RowReport(), need=("is_safe",)))
    stage, training = Moderation(data=DATA, class_weights="balanced", max_class_weight=1000.0), np.arange(0, 200, 3)
    task = make_task(stage, rows, "m", training)
    chosen = task.targets[torch.from_numpy(training)]
    expected = class_weights(chosen.labels[chosen.labelled].numpy(), "balanced", 1000.0)
    np.testing.assert_array_equal(task.label_weights.numpy(), expected)
    assert not np.array_equal(expected, make_task(stage, rows, "m").label_weights.numpy())


@pytest.mark.parametrize("loss", ["sign", "pairwise+sign"])
def test_a_set_with_one_class_is_an_error_before_training(loss, tmp_path, monkeypatch):
    """Also for the moderation stage; nothing is left of the stored rows."""
    from trainers.supervised.stages import run_cost, run_moderation

    def read(run, stage, rows, head):
        with rows:
            pytest.fail("the rows were dealt to workers")

    monkeypatch.setattr("trainers.supervised.stages._train", read)
    safe = {"is_response_0_safe": True, "is_response_1_safe": True}
    labels = safe | {"safer_response_id": 0}
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "response_0": "a", "response_1": "b", **labels}] * 4)
    stage = {"model": "org/m", "data": {"source": str(tmp_path / "rows.jsonl")}}
    sections = {"cost": {**stage, "loss": loss}, "moderation": {"qa": stage}}
    config = Config.model_validate({"run_dir": str(tmp_path / "run"), **sections})
    plan = make_plan(config)
    with pytest.raises(CastorError, match=r"cost: is_.*safe is true in every row, and both classes are needed"):
        run_cost(run_of(plan, "cost"))
    with pytest.raises(CastorError, match=r"moderation\.qa: is_safe is true in every row"):
        run_moderation(run_of(plan, "qa"))
    assert not list((tmp_path / "run").rglob("*.arrow"))


@pytest.mark.skipif(not REAL_ROWS.is_file(), reason="the real rows are not here")
def test_a_cost_learns_from_real_rows_without_preferences(tmp_path):
    """BeaverTails rows have safety flags only: enough for the classification-only loss."""
    source = DataSource(source=str(REAL_ROWS), limit=400)
    rows = list(stream_qa(source, RowReport(), need=("is_safe",)))
    task = make_task(Cost(data=[source], loss="sign"), rows, "m")
    assert len(task.safe) == 400
    outputs = torch.where(torch.tensor([row.is_safe for row in rows]), -1.0, 1.0)
    assert task.measure([outputs], list(range(400)))["sign_accuracy"] == 1.0
