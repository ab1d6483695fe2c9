"""What the supervised stages learn, on real (tiny) models: positions, losses, metrics, calibration."""

import numpy as np
import pytest
import torch

from castor.config.data import DataSource, SyntheticOptions
from castor.config.demo_model import DemoModel
from castor.config.preference import Cost, Reward
from castor.config.supervised import SFT
from castor.data.rows.schemas import Exchange, PreferenceRow, QARow, parse_row
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.start import start_line
from castor.models.tiny import make_demo_model
from castor.synthetic.corpus import demonstrations, preference_rows
from tests.numerics import TINY_MODELS, assert_close, tolerance
from trainers.supervised.tasks import make_task
from trainers.supervised.tasks.scores import calibrate

DATA = [DataSource()]
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "max_position_embeddings": 160}
DEMONSTRATIONS = [QARow(row["prompt"], row["response"]) for row in demonstrations(SyntheticOptions(), "train", 12)]
PREFERENCES = [parse_row(row) for row in preference_rows(SyntheticOptions(), "train", 12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    text = [text for row in DEMONSTRATIONS for text in (row.prompt, row.response)]
    text += [text for row in PREFERENCES for exchange in row.exchanges for text in exchange[:2]]
    make_demo_model(DemoModel(**SMALL), text, 0, path)
    return str(path)


@pytest.fixture(scope="module")
def template(folder):
    return PromptTemplate(load_tokenizer(folder))


def everything(samples):
    return np.arange(len(samples))


class Fixed:
    """A forward pass whose output is known: value i at the i-th position asked for."""

    def __init__(self, values):
        self.values = torch.tensor(values, dtype=torch.float64)
        self.positions = None

    def __call__(self, rows, positions):
        assert len(positions) == len(self.values)
        self.positions = positions
        return self.values


def test_positions_of_targets_and_ends(template):
    samples = Samples(template, [[("write a", "plan now")], [("help", "sure")]], max_length=20)
    packed = samples.pack(everything(samples), 16)
    # <user> write a <assistant> | plan now <eos> ; <user> help <assistant> | sure <eos>
    assert packed.prompt_lengths.tolist() == [4, 3]
    assert packed.lengths.tolist() == [7, 5]
    assert packed.target_positions(train_on_prompt=False).tolist() == [4, 5, 6, 10, 11]
    assert packed.target_positions(train_on_prompt=True).tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert packed.last_positions().tolist() == [6, 11]
    ends = packed.rows.input_ids.view(-1)[packed.rows.flat[packed.last_positions()]]
    assert ends.tolist() == [template.tokenizer.eos_token_id] * 2
    for train_on_prompt, count in ((False, 5), (True, 10)):
        assert samples.targets(everything(samples), train_on_prompt) == count


def test_long_samples_are_left_out_and_counted(template):
    texts = [[("a", "b")], [("a", "b c d e f g h")], [("a", "b c")]]
    samples = Samples(template, texts, max_length=6)
    assert (samples.kept.tolist(), samples.too_long, len(samples)) == ([0, 2], 1, 2)
    assert samples.lengths().tolist() == [5, 6]
    pairs = Samples(template, [[("a", "b"), ("a", "b c d e f g h")], [("a", "b"), ("a", "c")]], max_length=6)
    assert (pairs.kept.tolist(), pairs.lengths().tolist()) == ([1], [10])


def test_an_empty_batch_packs_to_nothing(template):
    packed = Samples(template, [[("a", "b")]], max_length=6).pack(np.empty(0, dtype=np.int64), 16)
    assert len(packed.target_positions(False)) == len(packed.last_positions()) == 0


@pytest.mark.parametrize("train_on_prompt", [True, False])
def test_the_sft_loss_is_transformers_own(folder, template, train_on_prompt):
    task = make_task(SFT(data=DATA, train_on_prompt=train_on_prompt), DEMONSTRATIONS, folder)
    samples = Samples(template, task.texts(), max_length=128)
    model = task.load(torch.float32).eval()
    assert isinstance(model, PolicyModel)
    chosen, expected = everything(samples), 0.0
    with torch.no_grad():
        loss = float(task.loss(model, samples.pack(chosen, 64), chosen.tolist()))
        for row in DEMONSTRATIONS:
            head, tail = template.encode_prompt(row.prompt), template.encode_response(row.response)
            labels = torch.tensor([[*(head if train_on_prompt else [-100] * len(head)), *tail]])
            output = model.lm(input_ids=torch.tensor([[*head, *tail]]), labels=labels)
            expected += float(output.loss) * (len(tail) + (len(head) - 1 if train_on_prompt else 0))
    assert loss == pytest.approx(expected, rel=tolerance(1.0, TINY_MODELS))
    targets = sum(
        len(template.encode_response(row.response))
        + (len(template.encode_prompt(row.prompt)) - 1 if train_on_prompt else 0)
        for row in DEMONSTRATIONS
    )
    assert task.weight(samples, chosen) == targets


def test_sft_is_measured_per_response_token(folder):
    task = make_task(SFT(data=DATA), DEMONSTRATIONS, folder)
    outputs = [torch.tensor([-1.0, -2.0]), torch.tensor([-6.0])]
    metrics = task.measure(outputs, [0, 1])
    assert metrics == pytest.approx({"validation_loss": 3.0, "validation_perplexity": float(np.exp(3.0))})


def row(better=0, safer=0, safe=(True, False)):
    return PreferenceRow("p", "zero", "one", safe[0], safe[1], better_response_id=better, safer_response_id=safer)


def test_the_preferred_response_comes_first():
    rows = [row(better=0, safer=1, safe=(False, True)), row(better=1, safer=0)]
    zero, one = Exchange("p", "zero"), Exchange("p", "one")
    assert list(make_task(Reward(data=DATA), rows, "m").texts()) == [(zero, one), (one, zero)]
    assert list(make_task(Cost(data=DATA), rows, "m").texts()) == [(one, zero), (zero, one)]


def test_an_unlabelled_row_is_an_error():
    with pytest.raises(ValueError, match="without the label a cost model needs"):
        make_task(Cost(data=DATA), [PreferenceRow("p", "a", "b", better_response_id=0)], "m")


def nlog_sigmoid(x):
    return float(np.log1p(np.exp(-x)))


def test_worked_preference_losses():
    rows = [row(safer=0), row(safer=1, safe=(False, False))]
    samples_of_rows = [1, 0]  # the batch visits the second row first
    forward = Fixed([0.5, 2.0, -1.0, 3.0])
    packed = Samples(_Words(), [[("p", "a"), ("p", "b")]] * 2, 9).pack(np.array([1, 0]), 8)
    cost = make_task(Cost(data=DATA, regularization=0.1), rows, "m")
    # row 1: both unsafe (s = +1, +1), scores safer 0.5, unsafer 2.0; row 0: safe/unsafe, scores -1.0, 3.0
    expected = (
        nlog_sigmoid(1.5) + nlog_sigmoid(0.5) + nlog_sigmoid(2.0) + 0.1 * (0.25 + 4.0) / 2
        + nlog_sigmoid(4.0) + nlog_sigmoid(1.0) + nlog_sigmoid(3.0) + 0.1 * (1.0 + 9.0) / 2
    )  # fmt: skip
    assert float(cost.loss(forward, packed, samples_of_rows)) == pytest.approx(expected, abs=1e-9)
    assert forward.positions.tolist() == packed.last_positions().tolist()
    assert cost.weight(None, np.array([1, 0])) == 2
    reward = make_task(Reward(data=DATA, regularization=0.1), rows, "m")
    expected = nlog_sigmoid(-1.5) + nlog_sigmoid(-4.0) + 0.1 * (0.25 + 4.0 + 1.0 + 9.0) / 2
    assert float(reward.loss(forward, packed, samples_of_rows)) == pytest.approx(expected, abs=1e-9)


def test_worked_safety_losses_and_sign_accuracy():
    """A cost model from safety flags alone: rows in the order of the batch, and no sign at zero."""
    rows = [QARow("p", "a", True), QARow("p", "b", False), QARow("q", "c", False)]
    task = make_task(Cost(data=DATA, loss="sign", sign_weight=3.0, regularization=0.1), rows, "m")
    assert [list(map(tuple, sample)) for sample in task.texts()][1] == [("p", "b", ())]
    packed = Samples(_Words(), task.texts(), 9).pack(np.array([2, 0]), 8)
    forward = Fixed([-1.0, 0.5])
    expected = 3 * nlog_sigmoid(-1.0) + 0.05 + 3 * nlog_sigmoid(-0.5) + 0.05 * 0.25
    assert float(task.loss(forward, packed, [2, 0])) == pytest.approx(expected, abs=1e-9)
    assert forward.positions.tolist() == packed.last_positions().tolist()
    outputs = [torch.tensor([-1.0, 2.0]), torch.tensor([0.0])]
    loss = nlog_sigmoid(1.0) + nlog_sigmoid(2.0) + nlog_sigmoid(0.0) + 0.05 * (1 + 4) / 3
    assert task.measure(outputs, [0, 1, 2]) == pytest.approx(
        {"validation_loss": loss, "sign_accuracy": 2 / 3, "score_mean": 1 / 3}
    )
    with pytest.raises(ValueError, match="without is_safe"):
        make_task(Cost(data=DATA, loss="sign"), [QARow("p", "a")], "m")
    with pytest.raises(ValueError, match="token-wise compares two"):
        Cost(data=DATA, loss="sign", loss_type="token-wise")


class _Words:
    """A template of one token for the prompt and two for the response."""

    def prompt_text(self, prompt, history=()):
        return prompt

    def encode_texts(self, texts):
        return [[1] for _ in texts]

    def encode_responses(self, responses):
        return [[ord(response), 2] for response in responses]


def test_accuracies_are_strict():
    """A tie is no preference, and a score of exactly zero has no sign."""
    reward = make_task(Reward(data=DATA, regularization=0.0), [row()] * 3, "m")
    scores = [torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0]])]
    loss = (nlog_sigmoid(1.0) + nlog_sigmoid(0.0) + nlog_sigmoid(-1.0)) / 3
    assert reward.measure(scores, [0, 1, 2]) == pytest.approx(
        {"validation_loss": loss, "accuracy": 1 / 3, "score_mean": 0.5}
    )
    # safer: response 1 of row 1, which is the second (unsafe) one of the others
    rows = [row(safer=0), row(safer=1, safe=(False, True)), row(safer=0, safe=(True, True))]
    cost = make_task(Cost(data=DATA), rows, "m")
    scores = [torch.tensor([[-1.0, 1.0], [-2.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
    metrics = cost.measure(scores, [0, 1, 2])
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["sign_accuracy"] == pytest.approx(3 / 6)


def test_the_signs_follow_the_rows_and_not_their_position():
    rows = [row(safer=0), row(safer=1, safe=(False, True))]
    cost = make_task(Cost(data=DATA), rows, "m")
    for order in ([0, 1], [1, 0], [1, 1]):
        assert cost.measure([torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])], order)["sign_accuracy"] == 1.0


@pytest.mark.parametrize("normalize", [True, False])
def test_calibration_never_shifts_a_cost(normalize):
    scores = torch.tensor([-4.0, -1.0, 0.0, 2.0, 5.0])
    cost = calibrate(ScoreInfo("cost"), scores, normalize)
    std = float(np.std([-4, -1, 0, 2, 5], ddof=1)) if normalize else 1.0
    assert cost.mean == 0.0
    assert cost.std == pytest.approx(std)
    assert cost.safe_mean == pytest.approx(-5 / 3 / std)  # a score of zero is on the safe side
    assert cost.unsafe_mean == pytest.approx(3.5 / std)
    reward = calibrate(ScoreInfo("reward"), scores, normalize)
    assert (reward.mean, reward.std) == pytest.approx((0.4, std) if normalize else (0.0, 1.0))
    assert reward.safe_mean is None
    one_sided = calibrate(ScoreInfo("cost"), scores[3:], normalize)
    assert one_sided.safe_mean is None
    assert one_sided.unsafe_mean == pytest.approx(3.5 / one_sided.std)


def test_a_normaliser_that_divides_by_nothing_is_an_error():
    with pytest.raises(ValueError, match="std must be positive"):
        calibrate(ScoreInfo("reward"), torch.ones(4), normalize=True)


@pytest.mark.parametrize("stage", [Reward(data=DATA), Cost(data=DATA)], ids=["reward", "cost"])
def test_a_score_model_is_saved_with_its_calibration(folder, template, tmp_path, stage):
    task = make_task(stage, PREFERENCES, folder)
    samples = Samples(template, task.texts(), max_length=128)
    torch.manual_seed(0)
    model = task.load(torch.float32).eval()
    packed = samples.pack(everything(samples), 64)
    with torch.no_grad():
        raw = task.observe(model, packed)
        assert raw.shape == (len(samples), 2)
        task.save(tmp_path / "score", model, dict(model.state_dict()), [raw[:5], raw[5:]])
        normal = task.observe(ScoreModel.load(tmp_path / "score", torch.float32).eval(), packed)
    mean = float(raw.mean()) if isinstance(stage, Reward) else 0.0
    assert_close(normal, (raw - mean) / raw.std(), summands=raw.numel())
    assert normal.std() == pytest.approx(1.0, abs=tolerance(1.0, raw.numel()))


def test_a_policy_is_saved_as_a_hugging_face_folder(folder, tmp_path):
    task = make_task(SFT(data=DATA), DEMONSTRATIONS, folder)
    model = task.load(torch.float32)
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    task.save(tmp_path / "sft", model, weights, [])
    saved = PolicyModel.load(str(tmp_path / "sft"), torch.float32).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights.items())
    assert load_tokenizer(str(tmp_path / "sft")).chat_template


def single_dimension(number):
    """Rows with the fields of PKU-SafeRLHF-single-dimension: one preference, no safety label at all."""
    fields = ("prompt", "response_0", "response_1", "better_response_id")
    rows = ({name: row[name] for name in fields} for row in preference_rows(SyntheticOptions(), "train", number))
    return [parse_row(row | {"prompt_source": "s", "response_0_sha256": "00"}) for row in rows]


@pytest.mark.parametrize("loss_type", ["sequence-wise", "token-wise"])
def test_a_reward_model_learns_from_a_single_preference(folder, template, loss_type):
    """From `better_response_id` alone; a cost model refuses such rows."""
    rows = single_dimension(12)
    assert {(row.safer_response_id, row.is_response_0_safe) for row in rows} == {(None, None)}
    task = make_task(Reward(data=DATA, loss_type=loss_type), rows, folder)
    samples = Samples(template, task.texts(), max_length=128)
    torch.manual_seed(0)
    model = task.load(torch.float32)
    packed, chosen = samples.pack(everything(samples), 256), everything(samples).tolist()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        losses.append(task.loss(model, packed, chosen))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1].detach()) < 0.5 * float(losses[0].detach())
    with torch.no_grad():
        assert task.measure([task.observe(model, packed)], chosen)["accuracy"] > 0.9
    with pytest.raises(ValueError, match="without the label a cost model needs"):
        make_task(Cost(data=DATA), rows, folder)


@pytest.mark.parametrize("kind", [Reward, Cost])
def test_the_token_wise_loss_of_a_model_compares_every_position(folder, template, kind):
    """Packed, against each sequence alone and the loss written out over positions."""
    task = make_task(kind(data=DATA, loss_type="token-wise", regularization=0.1), PREFERENCES, folder)
    samples = Samples(template, task.texts(), max_length=128)
    torch.manual_seed(0)
    model = task.load(torch.float32).eval()
    chosen, expected = everything(samples), 0.0
    with torch.no_grad():
        actual = float(task.loss(model, samples.pack(chosen, 64), chosen.tolist()))
        for index in chosen:
            packed = samples.pack(chosen[index : index + 1], 1)
            lengths = packed.lengths.tolist()
            flat = model(packed.rows, torch.arange(sum(lengths)))
            a, b = (part.tolist() for part in flat.split(lengths))
            tokens = packed.rows.input_ids.view(-1)[packed.rows.flat].split(lengths)
            begin = next(i for i, pair in enumerate(zip(*tokens, strict=False)) if pair[0] != pair[1])
            signs = [-1.0 if safe else 1.0 for safe in task._safe_flags([index])[0]]
            terms = []
            for i in range(begin, max(lengths)):
                first, second = a[min(i, lengths[0] - 1)], b[min(i, lengths[1] - 1)]
                term = 0.05 * (first**2 + second**2)
                term += nlog_sigmoid(first - second) if kind is Reward else nlog_sigmoid(second - first)
                if kind is Cost:
                    term += nlog_sigmoid(signs[0] * first) + nlog_sigmoid(signs[1] * second)
                terms.append(term)
            expected += sum(terms) / len(terms)
    assert actual == pytest.approx(expected, rel=tolerance(1.0, TINY_MODELS))


@pytest.mark.parametrize("kind", [Reward, Cost])
@pytest.mark.parametrize("normalize", ["running", "ema"])
@pytest.mark.parametrize("during", [False, True])
def test_statistics_of_the_training_scores_become_the_normaliser(folder, template, tmp_path, kind, normalize, during):
    stage = kind(data=DATA, normalize=normalize, normalize_score_during_training=during, normalizer_momentum=0.5)
    task = make_task(stage, PREFERENCES, folder)
    plain = make_task(kind(data=DATA, normalize="none"), PREFERENCES, folder)
    samples = Samples(template, task.texts(), max_length=128)
    torch.manual_seed(0)
    model = task.load(torch.float32).eval()
    packed, chosen = samples.pack(everything(samples), 64), everything(samples).tolist()
    loss = task.loss(model, packed, chosen)
    with torch.no_grad():
        raw = task.observe(model, packed)
        task.loss(model, packed, chosen)  # without gradients nothing is learned
    mean, var = float(raw.mean()), float(raw.var())
    if normalize == "ema":
        mean, var = 0.5 * mean, 0.5 + 0.5 * var
    shift = mean if kind is Reward else 0.0
    seen = (raw - shift) / var**0.5 if during else raw
    expected = plain.loss(Fixed(seen.flatten().tolist()), packed, chosen)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance(1.0, TINY_MODELS))
    task.save(tmp_path / "score", model, dict(model.state_dict()), [raw])
    saved = ScoreModel.load(tmp_path / "score", torch.float32)
    assert (saved.info.mean, saved.info.std) == pytest.approx((shift, var**0.5), abs=tolerance(raw, raw.numel()))
    if kind is Cost:
        normal = raw / var**0.5
        sides = ((saved.info.safe_mean, normal[normal <= 0]), (saved.info.unsafe_mean, normal[normal > 0]))
        for mean, side in sides:
            assert mean == (pytest.approx(float(side.mean()), rel=1e-4) if len(side) else None)


def test_an_empty_micro_batch_has_no_loss_and_no_statistics(folder, template):
    for stage in (Reward(data=DATA, normalize="ema"), Cost(data=DATA, loss_type="token-wise", normalize="running")):
        task = make_task(stage, PREFERENCES, folder)
        samples = Samples(template, task.texts(), max_length=128)
        model = task.load(torch.float32)
        loss = task.loss(model, samples.pack(np.empty(0, dtype=np.int64), 16), [])
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
        assert task.normalizer is not None
        assert int(task.normalizer.count) == 0


def test_options_of_the_normaliser():
    assert [Reward(data=DATA, normalize=value).normalize for value in (True, False)] == ["held_out", "none"]
    for normalize in ("held_out", "none"):
        with pytest.raises(ValueError, match="set normalize to running or ema"):
            Cost(data=DATA, normalize=normalize, normalize_score_during_training=True)


def test_a_head_without_a_bias_is_trained_and_saved(folder, template, tmp_path):
    task = make_task(Cost(data=DATA, head_bias=False), PREFERENCES, folder)
    model = task.load(torch.float32)
    assert model.score_head.bias is None
    samples = Samples(template, task.texts(), max_length=128)
    with torch.no_grad():
        raw = task.observe(model.eval(), samples.pack(everything(samples), 64))
    task.save(tmp_path / "score", model, dict(model.state_dict()), [raw])
    assert ScoreModel.load(tmp_path / "score", torch.float32).score_head.bias is None


def test_a_stage_goes_on_with_the_head_of_a_model_of_its_kind(folder, tmp_path):
    torch.manual_seed(4)
    model = ScoreModel.from_backbone(folder, ScoreInfo("reward", 0.3, 2.0), torch.float32)
    save_score_model(tmp_path / "reward", model.backbone, dict(model.state_dict()), model.info, folder)
    for stage, goes_on in ((Reward(data=DATA), True), (Cost(data=DATA), False)):
        task = make_task(stage, PREFERENCES, tmp_path / "reward")
        started = task.load(torch.float32)
        assert torch.equal(started.score_head.weight, model.score_head.weight) == goes_on
        assert started.info == ScoreInfo("reward" if goes_on else "cost")
        assert ("goes on with the head" if goes_on else "fresh head") in (start_line(task.source, task.kind) or "")
    assert start_line(folder, "reward") is None
