"""DPO and SafeDPO: the papers' equations in float64, the order of pairs, the task on a tiny model, kept references."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from castor.algorithms.dpo import dpo_loss, reward_margins, safedpo_loss, safety_first
from castor.algorithms.ragged import sequence_sums
from castor.config.data import DataSource, SyntheticOptions
from castor.config.demo_model import DemoModel
from castor.config.dpo import DPO
from castor.config.pipeline import Config
from castor.config.training import Engine
from castor.data.rows.schemas import PreferenceRow, parse_row
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.io.errors import CastorError
from castor.model_reference import ModelReference
from castor.models.policy import PolicyModel
from castor.models.tiny import make_demo_model
from castor.packing import pack_rows
from castor.run.check import check
from castor.run.files import TrainingFiles
from castor.run.plan import make_plan
from castor.synthetic.corpus import preference_rows
from tests.numerics import TINY_MODELS, tolerance
from trainers.supervised.reference_logprobs import reference_logprobs
from trainers.supervised.tasks import make_task
from trainers.supervised.tasks.dpo import first_of

DATA = [DataSource()]
VOCABULARY = 5
ROWS = [parse_row(row) for row in preference_rows(SyntheticOptions(), "train", 16)]
BOTH_UNSAFE = PreferenceRow("p", "a", "b", False, False, better_response_id=0, safer_response_id=1)


@st.composite
def ragged_pairs(draw):
    """Response lengths [2 P], and per pair whether its second response is unsafe."""
    count = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 6), min_size=2 * count, max_size=2 * count))
    unsafe = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return lengths, unsafe, draw(st.integers(0, 2**31))


def written_out(logits, tokens, lengths, reference, beta, smoothing, offsets):
    """Sum of the losses and its gradient by the logits: Rafailov et al. 2023, eq. 7 and its gradient (sec. 4)."""
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total, gradient = 0.0, np.zeros_like(logits)
    for pair, offset in enumerate(offsets):
        rewards = []
        for side in (0, 1):
            span = range(starts[2 * pair + side], starts[2 * pair + side + 1])
            likelihood = math.prod(probability[t, tokens[t]] for t in span)
            rewards.append(beta * math.log(likelihood / math.exp(reference[pair, side])))
        margin = rewards[0] - rewards[1] - offset
        total += (1 - smoothing) * math.log1p(math.exp(-margin)) + smoothing * math.log1p(math.exp(margin))
        slope = -beta * ((1 - smoothing) / (1 + math.exp(margin)) - smoothing / (1 + math.exp(-margin)))
        for side, sign in ((0, 1.0), (1, -1.0)):
            for t in range(starts[2 * pair + side], starts[2 * pair + side + 1]):
                gradient[t] -= sign * slope * probability[t]
                gradient[t, tokens[t]] += sign * slope
    return total, gradient


@settings(deadline=None, max_examples=60)
@given(ragged_pairs(), st.floats(0.01, 2.0), st.floats(0.0, 0.49), st.floats(0.0, 12.0), st.booleans())
def test_losses_and_gradients_of_ragged_pairs(batch, beta, smoothing, safety_margin, safe):
    lengths, unsafe, seed = batch
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(sum(lengths), VOCABULARY))
    tokens = rng.integers(0, VOCABULARY, sum(lengths))
    reference = -rng.uniform(0.1, 8.0, (len(unsafe), 2))
    logits = torch.tensor(values, requires_grad=True)
    chosen = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(tokens)[:, None]).squeeze(1)
    logprobs = sequence_sums(chosen, torch.tensor(lengths)).view(-1, 2)
    margins = reward_margins(logprobs, torch.from_numpy(reference), beta)
    if safe:
        losses, smoothing = safedpo_loss(margins, torch.tensor(unsafe), safety_margin), 0.0
        offsets = [safety_margin * flag for flag in unsafe]
    else:
        losses, offsets = dpo_loss(margins, smoothing), [0.0] * len(unsafe)
    losses.sum().backward()
    expected, gradient = written_out(values, tokens, lengths, reference, beta, smoothing, offsets)
    assert losses.shape == (len(unsafe),)
    assert losses.sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=1e-6, atol=1e-9)


def test_worked_values():
    logprobs, reference = torch.tensor([[-2.0, -3.0]]).double(), torch.tensor([[-4.0, -2.0]]).double()
    assert reward_margins(logprobs, reference, 0.5).tolist() == [1.5]  # 0.5 (2 + 1)
    assert dpo_loss(torch.zeros(1).double()).item() == pytest.approx(math.log(2))
    margin = torch.tensor([1.5]).double()
    assert safedpo_loss(margin, torch.tensor([True]), 10.0).item() == pytest.approx(math.log1p(math.exp(8.5)))
    assert safedpo_loss(margin, torch.tensor([False]), 10.0).item() == dpo_loss(margin).item()
    assert dpo_loss(torch.tensor([800.0])).isfinite().all()


@pytest.mark.parametrize("preferred", [0, 1])
def test_a_safe_response_goes_first(preferred):
    other = 1 - preferred
    flags = {preferred: True, other: False}
    assert safety_first(preferred, (True, True)) == preferred
    assert safety_first(preferred, (flags[0], flags[1])) == preferred
    assert safety_first(preferred, (flags[1], flags[0])) == other
    assert safety_first(preferred, (False, False)) is None


def test_which_response_a_stage_prefers():
    row = PreferenceRow("p", "a", "b", False, True, better_response_id=0, safer_response_id=1)
    assert first_of(DPO(data=DATA), row) == 0
    assert first_of(DPO(data=DATA, preference="safer"), row) == 1
    assert first_of(DPO(data=DATA, loss="safedpo"), row) == 1
    assert first_of(DPO(data=DATA, loss="safedpo"), BOTH_UNSAFE) is None
    assert first_of(DPO(data=DATA), BOTH_UNSAFE) == 0


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"safety_margin": 1.0}, "loss dpo has no safety_margin"),
        ({"loss": "safedpo", "label_smoothing": 0.1}, "loss safedpo has no label_smoothing"),
        ({"loss": "safedpo", "preference": "safer"}, "remove preference"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": 0.0}, "greater than 0"),
    ],
)
def test_keys_that_do_not_go_together(options, finding):
    with pytest.raises(ValidationError, match=finding):
        DPO(data=DATA, **options)


def test_labels_and_the_papers_margin():
    assert DPO(data=DATA, preference="safer").labels == ("safer",)
    assert DPO(data=DATA, loss="safedpo").labels == ("better", "safe_flags")
    assert (DPO(data=DATA, loss="safedpo").margin, DPO(data=DATA, loss="safedpo", safety_margin=0).margin) == (10, 0)


def config(**stages):
    data = {"data": {"source": "synthetic"}}
    return Config.model_validate(
        {"model": {"max_position_embeddings": 1024}, "sft": data, "reward": data, "cost": data, "evaluate": {}}
        | {"dpo": {name: data | options for name, options in stages.items()}}
    )


def test_stages_chain_and_are_evaluated():
    both = config(helpful={}, sacpo={"model": "stage:helpful", "preference": "safer"})
    check(make_plan(both))
    assert list(make_plan(both).stages) == ["model", "sft", "reward", "cost", "helpful", "sacpo", "evaluate"]
    assert list(make_plan(both).policies) == ["sft", "helpful", "sacpo"]
    with pytest.raises(CastorError, match=r"dpo\.a\.model: stage:b runs later"):
        check(make_plan(config(a={"model": "stage:b"}, b={})))
    with pytest.raises(CastorError, match=r"dpo\.a\.reference: stage:reward .* got reward model"):
        check(make_plan(config(a={"reference": "stage:reward"})))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    text = [text for row in ROWS for exchange in row.exchanges for text in exchange[:2]]
    small = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "max_position_embeddings": 160}
    make_demo_model(DemoModel(**small), text, 0, path)
    return str(path)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def alone(model, template, exchange):
    """Log-probability of a response by itself, unpacked."""
    head, response = template.encode_prompt(exchange.prompt), template.encode_response(exchange.response)
    tokens = np.array([*head, *response])
    positions = torch.arange(len(head), len(tokens))
    with torch.no_grad():
        return float(model(pack_rows(tokens, np.array([len(tokens)]), 1), positions).double().sum())


@pytest.mark.parametrize("options", [{}, {"preference": "safer"}, {"loss": "safedpo", "safety_margin": 2.0}])
def test_the_task_of_a_model_against_each_response_alone(folder, process_group, tmp_path, options):
    stage = DPO(data=DATA, beta=0.3, engine=Engine(micro_batch_tokens=200, pack_length=64), **options)
    rows = [row for row in ROWS if first_of(stage, row) is not None]
    task, template = make_task(stage, rows, folder), PromptTemplate(load_tokenizer(folder))
    sizes = {
        max(len(template.encode_prompt(e.prompt)) + len(template.encode_response(e.response)) for e in row.exchanges)
        for row in rows
    }
    samples = Samples(template, task.texts(), max_length=sorted(sizes)[-2])
    assert 0 < samples.too_long < len(rows)
    task.prepare(samples, TrainingFiles(tmp_path))
    reference, policy = (PolicyModel.load(folder, torch.float32).eval() for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    chosen = np.arange(1, len(samples))
    numbers = [int(row) for row in samples.kept[chosen]]
    with torch.no_grad():
        packed = samples.pack(chosen, 64)
        loss, observed = task.loss(policy, packed, numbers), task.observe(policy, packed)
    expected, margins = 0.0, []
    for number in numbers:
        first = first_of(stage, rows[number])
        pair = [rows[number].exchanges[i] for i in (first, 1 - first)]
        ratios = [alone(policy, template, e) - alone(reference, template, e) for e in pair]
        margins.append(0.3 * (ratios[0] - ratios[1]))
        second_safe = (rows[number].is_response_0_safe, rows[number].is_response_1_safe)[1 - first]
        offset = 2.0 if stage.loss == "safedpo" and not second_safe else 0.0
        expected += math.log1p(math.exp(-(margins[-1] - offset)))
    rounding = tolerance([*margins, 20.0], TINY_MODELS)  # β times the log-probability of a response is at most 20
    assert float(loss) == pytest.approx(expected, abs=len(numbers) * rounding)
    metrics = task.measure([observed[:3], observed[3:]], numbers)
    assert metrics["validation_loss"] == pytest.approx(expected / len(numbers), abs=rounding)
    assert metrics["margin_mean"] == pytest.approx(np.mean(margins), abs=rounding)
    assert metrics["accuracy"] == np.mean(np.array(margins) > 0)
    assert metrics["chosen_reward"] - metrics["rejected_reward"] == pytest.approx(metrics["margin_mean"], abs=rounding)


def test_the_reference_is_computed_once_and_kept(folder, process_group, tmp_path):
    stage = DPO(data=DATA)
    samples = Samples(PromptTemplate(load_tokenizer(folder)), make_task(stage, ROWS, folder).texts(), max_length=128)
    files = TrainingFiles(tmp_path)
    first = reference_logprobs(stage, ModelReference(folder), samples, files)
    assert first.shape == (len(samples), 2)
    assert (first < 0).all()
    gone = ModelReference("no/such/model")
    again = reference_logprobs(stage, gone, samples, files)  # nothing is loaded
    np.testing.assert_array_equal(first, again)
    files.reference_logprobs.unlink()
    with pytest.raises(CastorError, match="no/such/model"):
        reference_logprobs(stage, gone, samples, files)


def test_the_start_is_the_reference_so_that_training_begins_at_log_two(folder, process_group, tmp_path):
    task = make_task(DPO(data=DATA), ROWS, folder)
    samples = Samples(PromptTemplate(load_tokenizer(folder)), task.texts(), max_length=128)
    task.prepare(samples, TrainingFiles(tmp_path))
    chosen = np.arange(len(samples))
    loss = task.loss(task.load(torch.float32), samples.pack(chosen, 64), chosen.tolist())
    assert loss.item() / len(samples) == pytest.approx(math.log(2), abs=tolerance(6.0, TINY_MODELS))
    empty = task.loss(task.load(torch.float32), samples.pack(chosen[:0], 64), [])
    empty.backward()
    assert empty.item() == 0.0


def test_a_pair_that_cannot_be_ordered_is_refused(folder):
    with pytest.raises(ValueError, match="cannot order"):
        make_task(DPO(data=DATA, loss="safedpo"), [BOTH_UNSAFE], folder)
    with pytest.raises(ValueError, match="without the label"):
        make_task(DPO(data=DATA), [PreferenceRow("p", "a", "b")], folder)
