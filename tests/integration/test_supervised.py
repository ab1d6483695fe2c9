"""Supervised stages on Ray Train: lost workers, stops, other worker counts, best models, adapters, poisoned rows."""

import math
import time
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch

from actors.progress import ProgressBoard
from castor.config.data import DataSource, SyntheticOptions
from castor.config.preference import Reward
from castor.config.supervised import SFT, Best, Workers
from castor.config.training import Engine, LoRA, Offload, Optimizer
from castor.data.rows.mixture import mix
from castor.data.rows.schemas import QARow, parse_row
from castor.data.rows.store import RowStore
from castor.io.errors import CastorError
from castor.io.files import read_json
from castor.models.policy import PolicyModel
from castor.run.files import StageFiles
from castor.synthetic.corpus import demonstrations, preference_rows
from tests.faults import FaultyBoard
from tests.numerics import TINY_MODELS, assert_close
from tests.plans import claim_of

ROWS = [QARow(row["prompt"], row["response"]) for row in demonstrations(SyntheticOptions(), "train", 160)]
PAIRS = [parse_row(row) for row in preference_rows(SyntheticOptions(), "train", 160)]


def stage(section=SFT, **options):
    optimizer = Optimizer(lr=3e-3, lr_warmup_ratio=0.1)
    engine = Engine(zero_stage=2, micro_batch_tokens=400, pack_length=64, optimizer=optimizer)
    defaults = {"max_steps": 120, "batch_size": 8, "validation_share": 0.2, "max_length": 128, "engine": engine}
    return section(data=[DataSource()], **{**defaults, **options})


def run(config, model, out, watch=lambda progress: None, rows=ROWS, **options):
    from trainers.supervised.driver import run_supervised

    told = []

    def note(progress):
        told.append(progress)
        watch(progress)

    arguments = {"template": "auto", "seed": 5, "claim": claim_of(), "on_progress": note} | options
    rows = rows if hasattr(rows, "__enter__") else nullcontext(rows)
    return run_supervised(config, model=model, rows=rows, files=StageFiles(out), **arguments), told


def losses(told):
    return [(progress.done, progress.metrics["loss"]) for progress in told if "loss" in progress.metrics]


def test_a_lost_worker_a_stop_and_a_resume_on_fewer_workers(ray_session, tiny_models, tmp_path, monkeypatch):
    """Rank 0 dies as it reports step 12, and the stage goes on from its checkpoint; rank 1 at step 42 stops it.

    What differs from one kind of stage to another is before the loop that they share.
    """
    options = {"max_steps": 60, "checkpoint_every": 10, "eval_every": 30, "workers": 2}
    expected, told = run(stage(Reward, **options), tiny_models.policy, tmp_path / "whole", rows=PAIRS)
    undisturbed = dict(losses(told))
    assert list(undisturbed) == list(range(1, 61))

    stored = RowStore.write(tmp_path / "rows.arrow", type(PAIRS[0]), iter(PAIRS))
    rows = mix([DataSource()], [stored], 0)  # from the disk: the samples are those of the list
    board = FaultyBoard(ProgressBoard.remote(), {12: "itself", 42: "another"}, tmp_path / "witnesses")
    told = []
    with monkeypatch.context() as patch:
        patch.setattr("trainers.supervised.driver.ProgressBoard", SimpleNamespace(remote=lambda: board))
        with pytest.raises(Exception, match=r"(?i)worker|actor"):
            run(stage(Reward, **options, max_failures=1), tiny_models.policy, tmp_path / "reward", told.append, rows)
    assert board.struck() == ["step-12-itself", "step-42-another"]
    assert [step for step, _ in losses(told)] == [*range(1, 13), *range(11, 43)]
    assert all(loss == undisturbed[step] for step, loss in losses(told))  # bit for bit, before the fault and after it
    assert not (tmp_path / "reward").exists()

    metrics, told = run(stage(Reward, **options | {"workers": 1}), tiny_models.policy, tmp_path / "reward", rows=rows)
    resumed = losses(told)
    assert [step for step, _ in resumed] == list(range(41, 61))
    assert [loss for _, loss in resumed] == pytest.approx([undisturbed[step] for step, _ in resumed], rel=1e-3)
    assert metrics.keys() == expected.keys()
    assert (metrics["steps"], metrics["training_samples"]) == (60, expected["training_samples"])
    for name in expected.keys() - {"history"}:  # with another world size a sample at a decision's edge may change sides
        value = expected[name]
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=0.0 if name.endswith("loss") else 0.04), name
    assert [entry["step"] for entry in metrics["history"]] == [30, 60]
    assert not (tmp_path / "reward.training").exists()


POISON = 60  # the row whose prompt is of words the tokenizer does not know


@pytest.fixture
def poisoned(tiny_models, tmp_path):
    """A copy of the model whose embedding of the unknown token is NaN; rows with one that has it, and a seed."""
    from castor.data.tokens.template import load_tokenizer
    from trainers.supervised.driver import split_by_prompt

    policy, tokenizer = PolicyModel.load(tiny_models.policy, torch.float32), load_tokenizer(tiny_models.policy)
    known = [
        row for row in ROWS if tokenizer.unk_token_id not in tokenizer(f"{row.prompt} {row.response}")["input_ids"]
    ]
    with torch.no_grad():
        policy.lm.get_input_embeddings().weight[tokenizer.unk_token_id] = math.nan
    policy.lm.save_pretrained(tmp_path / "poisoned")
    tokenizer.save_pretrained(tmp_path / "poisoned")
    rows = [*known[:POISON], QARow("zzz zzz", "yes"), *known[POISON:]]
    seed = next(seed for seed in range(50) if POISON in split_by_prompt(rows, 0.2, seed)[0])
    return str(tmp_path / "poisoned"), rows, seed


def test_rows_that_cannot_be_read_end_the_workers_that_start_meanwhile(ray_session, tiny_models, tmp_path):
    @contextmanager
    def unreadable():
        deadline = time.monotonic() + 120
        while not workers():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        raise CastorError("no rows")
        yield

    def workers():
        found = psutil.Process().children(recursive=True)
        return [each for each in found if "RayTrainWorker" in _title(each)]

    with pytest.raises(CastorError, match=r"^no rows$"):
        run(stage(max_steps=2), tiny_models.policy, tmp_path / "out", rows=unreadable())
    _, alive = psutil.wait_procs(workers(), timeout=60)
    assert not alive
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_workers_that_are_restarted_when_the_result_is_there_do_nothing(ray_session):
    from trainers.supervised.train_loop import train_worker

    board = ProgressBoard.remote()
    ray.get(board.note_made.remote(), timeout=60)
    assert train_worker({"job": SimpleNamespace(board=board)}) is None  # without a model, or anything else


def _title(process):
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def test_a_poisoned_row_is_named(ray_session, poisoned, tmp_path):
    model, rows, seed = poisoned
    with pytest.raises(CastorError, match=r"sft: the loss is not finite at step \d+ for the rows 60 \(counted from 0"):
        run(stage(max_steps=20, max_failures=1), model, tmp_path / "sft", rows=rows, seed=seed)


def test_the_best_model_is_kept_adapters_are_merged_and_poisoned_batches_left_out(ray_session, poisoned, tmp_path):
    """A learning rate so high that the model soon becomes worse: the stage stops early and keeps the best.

    As many workers as there is room for, up to two, with weights and optimiser states offloaded.
    """
    model, rows, seed = poisoned
    optimizer = Optimizer(lr=1.0, lr_scheduler_type="constant", lr_warmup_ratio=0.3)
    away = Offload(optimizer="cpu", parameters="cpu")
    config = stage(
        engine=Engine(zero_stage=3, offload=away, micro_batch_tokens=400, pack_length=64, optimizer=optimizer),
        workers=Workers(min=1, max=2),
        eval_every=8,
        best=Best(metric="validation_loss", mode="min"),
        patience=2,
        lora=LoRA(rank=4, dropout=0.1),
        max_skipped=20,
    )
    metrics, _ = run(config, model, tmp_path / "sft", rows=rows, seed=seed)
    history = metrics["history"]
    best = min(history, key=lambda entry: entry["validation_loss"])
    assert metrics["kept_step"] == best["step"] == history[-3]["step"]
    assert metrics["steps"] == history[-1]["step"] < 120
    assert metrics["validation_loss"] == best["validation_loss"]
    assert metrics["skipped_batches"] >= 1
    assert read_json(tmp_path / "sft.metrics.json") == metrics

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 45)[None]  # not the poisoned token
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    plain = base(ids).logits
    merged = PolicyModel.load(str(tmp_path / "sft"), torch.float32).lm.eval()(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "sft.adapter").eval()(ids).logits
    assert_close(merged, adapted, TINY_MODELS)
    assert (merged - plain).abs().max() > 0.01
