"""The arithmetic of the published step, on padded tensors, against castor/algorithms on the same numbers, flat."""

import pytest
import torch

from benchmarks.bench.countdown import Shape, make_models, make_prompts, response_length
from benchmarks.bench.published_step import (
    Options,
    PublishedTrainer,
    actor_loss,
    advantages_and_returns,
    critic_loss,
    masked_mean,
    response_logprobs,
    with_score_at_the_end,
)
from castor.algorithms.advantages import combine, gae, penalized_stream
from castor.algorithms.losses import clipped_policy_loss, clipped_value_loss
from castor.algorithms.multipliers.log_space import SGDLog
from castor.algorithms.multipliers.rule import Measured
from castor.algorithms.ragged import to_padded, token_weights
from castor.config.multipliers import Multipliers
from castor.models.policy import PolicyModel
from castor.packing import pack_rows

LENGTHS = torch.tensor([1, 5, 3])
SMALL = Shape(hidden=64, layers=2, heads=2, intermediate=96, longest=20)


@pytest.fixture
def numbers():
    """Columns of nine response tokens, and a score for each of three responses."""
    random = torch.Generator().manual_seed(0)

    def column(size=9):
        return torch.randn(size, generator=random, dtype=torch.float64)

    return column


def padded(flat):
    return to_padded(flat, LENGTHS)[0]


def mask():
    return to_padded(torch.ones(9), LENGTHS)[1]


def weights():
    return token_weights(LENGTHS, "sequence", 3, 9, torch.float64)


def test_the_mean_is_over_tokens_and_then_over_responses():
    values = torch.tensor([[2.0, 9.0], [1.0, 4.0]])
    answers = torch.tensor([[True, False], [True, True]])
    assert float(masked_mean(values, answers)) == (2.0 + 2.5) / 2


@pytest.mark.parametrize("role", ["objective", "constraint"])
def test_streams_advantages_and_returns_are_those_of_castor(numbers, role):
    logprobs, reference, values, scores = numbers(), numbers(), numbers(), 2 * numbers(3)
    options = {"kl_coeff": 0.3, "clip_range_score": 1.5}
    stream = penalized_stream(scores, logprobs, reference, LENGTHS, role=role, **options)
    expected = gae(stream, values, LENGTHS, gamma=1.0, gae_lambda=0.95)
    sign = {"objective": -1.0, "constraint": 1.0}[role]
    kl = padded(logprobs - reference)
    found = with_score_at_the_end(sign * 0.3 * kl, scores, mask(), 1.5)
    torch.testing.assert_close(found[mask()], stream)
    advantages, returns = advantages_and_returns(found, padded(values), mask(), 0.95)
    torch.testing.assert_close(advantages[mask()], expected[0])
    torch.testing.assert_close(returns[mask()], expected[1])


def test_losses_are_those_of_castor(numbers):
    new, old, advantages = numbers(), numbers(), numbers()
    expected = (weights() * clipped_policy_loss(new, old, advantages, 0.2)).sum()
    torch.testing.assert_close(actor_loss(padded(new), padded(old), padded(advantages), mask(), 0.2), expected)
    values, before, returns = 4 * numbers(), 4 * numbers(), 4 * numbers()
    expected = (weights() * clipped_value_loss(values, before, returns, 1.0)).sum()
    torch.testing.assert_close(critic_loss(padded(values), padded(before), padded(returns), mask(), 1.0), expected)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"), SMALL)


def test_logprobs_of_padded_sequences_are_those_of_packed_ones(models):
    prompts = make_prompts(torch.tensor([4, 7]).numpy(), 6, 0)
    heads = [torch.from_numpy(prompt.ids).long() for prompt in prompts]
    answers = [torch.randint(5, SMALL.vocabulary, (n,), generator=torch.Generator().manual_seed(n)) for n in (4, 7)]
    tokens = torch.stack(
        [torch.cat([heads[0], answers[0], torch.zeros(3, dtype=torch.int64)]), torch.cat([heads[1], answers[1]])]
    )
    real = torch.ones_like(tokens)
    real[0, -3:] = 0
    policy = PolicyModel.load(str(models.policy), torch.float32)
    with torch.no_grad():
        found = response_logprobs(policy.lm, tokens, real, 6)
        flat = torch.cat([heads[0], answers[0], heads[1], answers[1]]).numpy()
        rows = pack_rows(flat, torch.tensor([10, 13]).numpy(), 64)
        positions = torch.cat([torch.arange(6, 10), torch.arange(16, 23)])
        expected = policy(rows, positions)
    torch.testing.assert_close(torch.cat([found[0, :4], found[1]]), expected, rtol=1e-4, atol=1e-4)


def test_a_step_answers_at_the_lengths_that_the_prompts_say_and_moves_everything_that_learns(models):
    trainer = PublishedTrainer(models, Options(actor_lr=1e-3, critic_lr=1e-3), SMALL.longest)
    learning = {"actor": trainer.actor, **trainer.critics}
    before = {name: [p.detach().clone() for p in model.parameters()] for name, model in learning.items()}
    prompts = make_prompts(torch.tensor([1, 2, 20, 5]).numpy(), 8, 0)
    seconds, lengths = trainer.step(prompts)
    assert lengths.tolist() == [response_length(prompt) for prompt in prompts] == [1, 2, 20, 5]
    assert seconds.keys() == {"generate_s", "forwards_s", "updates_s"}
    for name, model in learning.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], model.parameters(), strict=True)), name
    assert all(p.grad is None for p in trainer.reference.parameters())


def test_lambda_follows_the_rule_of_castor(models):
    trainer, rule = PublishedTrainer(models, Options(), SMALL.longest), SGDLog()
    config = Multipliers(rule="sgd_log", lambda_init=1.0, lambda_lr=0.1, lambda_max=5.0)
    memory = rule.start(config)
    for cost in (2.0, -1.0, 0.5, 1e3):
        memory = rule.step(memory, Measured(violation=cost, rectified=0.0), config)
        assert trainer.update_lambda(cost) == pytest.approx(rule.price(memory))
    assert trainer.update_lambda(0.0) == pytest.approx(5.0)


def test_the_combined_advantage_is_that_of_castor(numbers):
    reward, cost = numbers(), numbers()
    expected = combine({"reward": reward}, {"reward": 1.0}, {"cost": cost}, {"cost": 0.7})
    torch.testing.assert_close((reward - 0.7 * cost) / 1.7, expected)
