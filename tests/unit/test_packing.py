"""Packing: who works on what, where a token lies, and that packing changes no number."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from castor.config.learner import Learner
from castor.config.training import Engine
from castor.dealing import WORTH, deal, micro_batches, partition
from castor.experience import Experience
from castor.io.errors import CastorError
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel
from castor.packing import ALIKE, find_shared, pack_rows
from engines.batch import MicroBatch, forward_by_budget, make_micro_batch, plan_mini_batches
from tests.numerics import assert_close

lengths_of_batch = st.lists(st.integers(1, 40), max_size=24)
VOCABULARY = 50  # the models compute in float64; the softmax over it, and the scores, are float32


@given(lengths_of_batch, st.integers(1, 6))
def test_partition_deals_every_sequence_once_in_equal_counts_and_close_sums(lengths, parts):
    shares = partition(lengths, parts)
    assert len(shares) == parts
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in shares)
    counts, loads = [len(share) for share in shares], [sum(lengths[i] for i in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert max(loads) - min(loads) <= max(lengths, default=0)
    assert shares == partition(np.array(lengths, dtype=np.int32), parts)


def test_partition_needs_a_share():
    with pytest.raises(ValueError, match="0 shares"):
        partition([1], 0)


@given(lengths_of_batch, st.integers(1, 4), st.integers(1, 100))
def test_micro_batches_are_equally_many_complete_and_within_the_budget(lengths, ranks, budget):
    shares = partition(lengths, ranks)
    plan = micro_batches(lengths, shares, budget)
    assert len({len(pieces) for pieces in plan}) == 1
    for share, pieces in zip(shares, plan, strict=True):
        assert sorted(i for piece in pieces for i in piece) == share
        for piece in pieces:
            assert len(piece) <= 1 or sum(lengths[i] for i in piece) <= budget
    if lengths:  # no rank is made to run more than its sequences or its tokens call for
        assert len(plan[0]) <= max(len(share) for share in shares)
        assert len(plan[0]) >= -(-max(sum(lengths[i] for i in share) for share in shares) // budget) or all(
            len(share) <= len(plan[0]) for share in shares
        )


def test_one_piece_when_everything_fits():
    assert micro_batches([3, 4, 5], [[0, 2], [1]], 8) == [[[0, 2]], [[1]]]
    assert micro_batches([9, 1, 1], [[0], [1, 2]], 8) == [[[0]], [[1, 2]]]  # too long for the budget: alone
    assert micro_batches([5, 5, 5], [[0, 1], [2]], 8) == [[[0], [1]], [[2], []]]  # a rank without work runs along


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=40), st.integers(1, 4), st.integers(1, 200))
def test_what_is_dealt_is_complete_and_within_the_budget(sequences, ranks, budget):
    lengths, groups = [length for length, _ in sequences], [group for _, group in sequences]
    plan = deal(lengths, ranks, budget, groups)
    assert plan == deal(np.array(lengths, dtype=np.int64), ranks, budget, np.array(groups, dtype=np.int64))
    assert len(plan) == ranks
    assert len({len(pieces) for pieces in plan}) == 1
    pieces = [piece for pieces in plan for piece in pieces]
    assert sorted(i for piece in pieces for i in piece) == list(range(len(lengths)))
    assert all(piece == sorted(piece) for piece in pieces)
    assert all(len(piece) <= 1 or sum(lengths[i] for i in piece) <= budget for piece in pieces)
    loads = [sum(lengths[i] for piece in pieces for i in piece) for pieces in plan]
    assert max(loads) - min(loads) <= max(max(lengths, default=0), sum(lengths) // (ranks * 4))


@given(lengths_of_batch, st.integers(1, 4), st.integers(1, 100))
def test_sequences_without_a_group_are_dealt_one_by_one(lengths, ranks, budget):
    plan = micro_batches(lengths, partition(lengths, ranks), budget)
    assert deal(lengths, ranks, budget) == plan
    assert deal(lengths, ranks, budget, range(len(lengths))) == plan


def test_sequences_of_a_group_go_together():
    groups = [0, 1, 2, 3] * 4  # four responses to each of four prompts, as they happened to finish
    plan = deal([10] * 16, 2, 80, groups)
    assert plan == [[[0, 2, 4, 6, 8, 10, 12, 14]], [[1, 3, 5, 7, 9, 11, 13, 15]]]
    (rank,) = deal([10] * 16, 1, 80, groups)
    assert sorted(sorted({groups[i] for i in piece}) for piece in rank) == [[0, 2], [1, 3]]
    (rank,) = deal([10] * 16, 1, 30, groups)  # half a budget is for one of them
    assert len(rank) == 6
    (rank,) = deal([10] * 16, 1, 40, groups)  # and now for two
    assert [{groups[i] for i in piece} for piece in rank] == [{0}, {1}, {2}, {3}]


@given(lengths_of_batch.filter(bool), st.integers(1, 60), st.booleans())
def test_pack_rows_places_every_token_with_its_position(lengths, pack_length, masked):
    tokens = np.arange(1, sum(lengths) + 1)
    rows = pack_rows(tokens, np.array(lengths), pack_length, masked=masked)
    assert rows.input_ids.shape == rows.position_ids.shape
    assert rows.input_ids.shape[1] <= max(pack_length, *lengths)
    assert rows.input_ids.view(-1)[rows.flat].tolist() == tokens.tolist()
    assert rows.position_ids.view(-1)[rows.flat].tolist() == [p for length in lengths for p in range(length)]
    filled = torch.ones(rows.input_ids.numel(), dtype=torch.bool)
    filled[rows.flat] = False
    assert not rows.input_ids.view(-1)[filled].any()
    assert not rows.position_ids.view(-1)[filled].any()  # each filler token is a sequence of its own
    for first, last in zip(np.cumsum([0, *lengths[:-1]]), np.cumsum(lengths) - 1, strict=True):
        assert rows.flat[last] - rows.flat[first] == last - first  # in one piece
        assert rows.flat[first] // rows.input_ids.shape[1] == rows.flat[last] // rows.input_ids.shape[1]  # in one row


@given(lengths_of_batch, st.integers(1, 60))
def test_boundaries_cut_the_rows_into_their_sequences(lengths, pack_length):
    rows = pack_rows(np.arange(1, sum(lengths) + 1), np.array(lengths), pack_length)
    cuts, longest = rows.boundaries()
    assert cuts.dtype == torch.int32
    assert longest == max(lengths, default=1)
    pieces = rows.input_ids.view(-1).tensor_split(cuts[1:-1].long())
    filled = rows.input_ids.numel() - sum(lengths)
    assert sorted(piece.tolist() for piece in pieces) == sorted(
        [[0]] * filled + [list(range(end - n + 1, end + 1)) for n, end in zip(lengths, np.cumsum(lengths), strict=True)]
    )
    assert set(range(0, rows.input_ids.numel(), rows.input_ids.shape[1])) <= set(cuts.tolist())  # every row's start


def test_rows_that_are_masked_are_as_wide_as_is_cheapest():
    shape = {}
    for masked in (False, True):
        rows = pack_rows(np.ones(8 * 100), np.full(8, 100), 512, masked=masked)
        shape[masked] = tuple(rows.input_ids.shape)
    assert shape == {False: (2, 500), True: (8, 100)}  # no filler in the narrow ones, and a fifth of the attention
    rows = pack_rows(np.ones(400), np.array([200, *[50] * 4]), 512, masked=True)
    assert tuple(rows.input_ids.shape) == (2, 200)  # the short ones fill a row: rows of 50 are impossible


def test_worked_boundaries():
    rows = pack_rows(np.array([1, 1, 2, 2, 2, 3]), np.array([2, 3, 1]), 4)  # 2 2 2 3 | 1 1 . .
    cuts, longest = rows.boundaries()
    assert (cuts.tolist(), longest) == ([0, 3, 4, 6, 7, 8], 3)


def test_worked_packing_is_first_fit_decreasing():
    rows = pack_rows(np.array([1, 1, 2, 2, 2, 3]), np.array([2, 3, 1]), 4)
    assert rows.input_ids.tolist() == [[2, 2, 2, 3], [1, 1, 0, 0]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert rows.flat.tolist() == [4, 5, 0, 1, 2, 3]


def llama_config():
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return PolicyModel(LlamaForCausalLM(llama_config()).eval().double())


@pytest.fixture(scope="module")
def scorer():
    torch.manual_seed(1)
    return ScoreModel(LlamaModel(llama_config()).eval().double(), ScoreInfo("reward", mean=0.3, std=2.0))


def experience(lengths, seed=0):
    """Sequences of the given (prompt, response) lengths."""
    rng = np.random.default_rng(seed)
    prompts, responses = (np.array([pair[k] for pair in lengths], dtype=np.int32) for k in range(2))
    total = int(responses.sum())
    return Experience(
        uids=np.arange(len(lengths)),
        prompts=tuple(f"prompt {i}" for i in range(len(lengths))),
        tokens=rng.integers(0, VOCABULARY, int(prompts.sum()) + total).astype(np.int32),
        prompt_lengths=prompts,
        response_lengths=responses,
        logprobs=-rng.random(total).astype(np.float32),
        versions=np.zeros(total, dtype=np.int32),
        truncated=np.zeros(len(lengths), dtype=np.bool_),
    )


def micro(batch, sequences, columns=None, pack_length=24):
    return make_micro_batch(
        batch, np.asarray(sequences, dtype=np.int64), columns or {}, pack_length, torch.device("cpu")
    )


def one_by_one_logprobs(lm, batch, temperature):
    """[R] float64: each sequence alone through the plain language model."""
    ends, result = np.cumsum(batch.lengths), []
    for i, end in enumerate(ends):
        tokens = torch.from_numpy(batch.tokens[end - batch.lengths[i] : end].astype(np.int64))
        logits = lm(input_ids=tokens[None]).logits[0] / temperature
        chosen = torch.log_softmax(logits[:-1], -1).gather(-1, tokens[1:, None])[:, 0]
        result.append(chosen[-int(batch.response_lengths[i]) :])
    return torch.cat(result)


pairs = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@settings(max_examples=15)
@given(pairs, st.integers(1, 40), st.sampled_from([1.0, 0.7]))
def test_packed_logprobs_equal_those_of_each_sequence_alone(policy, lengths, pack_length, temperature):
    batch = experience(lengths)
    packed = micro(batch, range(len(batch)), pack_length=pack_length)
    with torch.no_grad():
        actual = policy(packed.rows, packed.response_positions, temperature)
        expected = one_by_one_logprobs(policy.lm, batch, temperature)
    assert actual.dtype == torch.float32
    assert_close(actual, expected, summands=VOCABULARY)


@settings(max_examples=15)
@given(pairs, st.integers(1, 40))
def test_packed_scores_equal_those_of_each_sequence_alone(scorer, lengths, pack_length):
    batch = experience(lengths)
    packed = micro(batch, range(len(batch)), pack_length=pack_length)
    ends, expected = np.cumsum(batch.lengths), []
    with torch.no_grad():
        for i, end in enumerate(ends):
            tokens = torch.from_numpy(batch.tokens[end - batch.lengths[i] : end].astype(np.int64))
            hidden = scorer.backbone(input_ids=tokens[None]).last_hidden_state[0, -1].float()  # as the head is
            expected.append((hidden @ scorer.score_head.weight[0] + scorer.score_head.bias[0] - 0.3) / 2.0)
        actual = scorer(packed.rows, packed.last_positions)
    assert_close(actual, torch.stack(expected), summands=hidden.numel())


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["policy", "scorer"])
def test_gradients_of_packed_micro_batches_add_up_to_those_of_sequences_alone(name, request):
    model, batch = request.getfixturevalue(name), experience([(2, 5), (4, 1), (1, 8), (3, 3)])

    def accumulate(groups):
        model.zero_grad()
        for group in groups:
            part = micro(batch, group)
            model(part.rows, part.response_positions if name == "policy" else part.last_positions).sum().backward()
        return gradients(model)

    packed, alone = accumulate([[3, 0], [1, 2], []]), accumulate([[0], [1], [2], [3]])
    model.zero_grad()
    for parameter, gradient in alone.items():
        assert_close(packed[parameter], gradient, summands=VOCABULARY)


@pytest.mark.parametrize("name", ["policy", "scorer"])
def test_an_empty_micro_batch_reaches_every_parameter_with_zero_gradients(name, request):
    model = request.getfixturevalue(name)
    part = micro(experience([(2, 3)]), [])
    assert len(part.lengths) == len(part.response_positions) == len(part.columns["logprobs"]) == 0
    output = model(part.rows, part.response_positions if name == "policy" else part.last_positions)
    assert output.shape == (0,)
    model.zero_grad()
    output.sum().backward()
    found = gradients(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert not any(gradient.any() for gradient in found.values())
    model.zero_grad()


def test_a_micro_batch_selects_its_columns_and_positions():
    batch = experience([(2, 3), (1, 1), (4, 2)])
    part = micro(batch, [2, 0], {"advantages": np.arange(6, dtype=np.float32)})
    assert part.lengths.tolist() == [2, 3]
    assert part.response_positions.tolist() == [4, 5, 8, 9, 10]
    assert part.last_positions.tolist() == [5, 10]
    assert part.columns["advantages"].tolist() == [4.0, 5.0, 0.0, 1.0, 2.0]
    assert part.columns["logprobs"].tolist() == np.r_[batch.logprobs[4:6], batch.logprobs[:3]].tolist()
    tokens = part.rows.input_ids.view(-1)[part.rows.flat]
    assert tokens.tolist() == np.r_[batch.tokens[7:13], batch.tokens[:5]].tolist()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(5, 60))
def test_all_ranks_together_train_on_every_sequence_once_an_iteration(ranks, minis, per_rank, iterations, budget):
    rng = np.random.default_rng(per_rank)
    count = ranks * minis * per_rank
    batch = experience([(int(a), int(b)) for a, b in rng.integers(1, 12, (count, 2))])
    learner = Learner(ranks=ranks, mini_batches=minis, update_iters=iterations)
    engine = Engine(micro_batch_tokens=budget)
    plans = [
        list(plan_mini_batches(batch, learner, engine, rank=rank, world_size=ranks, seed=(3, 5)))
        for rank in range(ranks)
    ]
    for iteration in range(iterations):
        seen = []
        for step in range(iteration * minis, (iteration + 1) * minis):
            parts = [plan[step] for plan in plans]
            chosen = [int(i) for part in parts for piece in part.micro for i in piece]
            assert len({len(part.micro) for part in parts}) == 1
            assert {part.sequences for part in parts} == {len(chosen)} == {ranks * per_rank}
            assert {part.tokens for part in parts} == {int(batch.response_lengths[chosen].sum())}
            seen += chosen
        assert sorted(seen) == list(range(count))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_mini_batches_take_whole_prompts_in_random_order_but_for_where_they_are_cut(minis, samples, prompts):
    count = minis * prompts
    batch = replace(
        experience([(3, 2)] * (count * samples)),
        prompts=tuple(f"prompt {i % count}" for i in range(count * samples)),  # answers come in any order
    )
    engine, learner = Engine(micro_batch_tokens=10_000), Learner(mini_batches=minis, update_iters=2)
    plan = list(plan_mini_batches(batch, learner, engine, rank=0, world_size=1, seed=(3, 5)))
    for step in plan:
        asked = Counter(int(i) % count for piece in step.micro for i in piece)
        assert asked.keys() <= set(range(count))
        assert set(asked.values()) == {samples}  # equally many prompts a mini-batch: none is cut
    if minis > 1 and count > 4:
        first, second = ([int(i) for piece in plan[step].micro for i in piece] for step in (0, minis))
        assert first != second


@settings(max_examples=30)
@given(pairs, st.integers(1, 40))
def test_forward_by_budget_returns_results_in_the_order_of_the_experience(lengths, budget):
    batch = experience(lengths)
    arguments = {"engine": Engine(micro_batch_tokens=budget), "device": torch.device("cpu")}

    def echo(part: MicroBatch) -> torch.Tensor:
        return part.columns["logprobs"]

    def last_token(part: MicroBatch) -> torch.Tensor:
        return part.rows.input_ids.view(-1)[part.rows.flat[part.last_positions]]

    tokens = forward_by_budget(batch, echo, lengths=batch.response_lengths, **arguments)
    assert np.array_equal(tokens, batch.logprobs)
    ones = np.ones(len(batch), dtype=np.int64)
    ends = forward_by_budget(batch, last_token, lengths=ones, **arguments)
    assert ends.tolist() == batch.tokens[np.cumsum(batch.lengths) - 1].tolist()


def test_forward_by_budget_lets_no_made_up_number_through():
    batch = experience([(1, 1)])
    with pytest.raises(CastorError, match=r"critic gives 1 of 1 texts a number that is not finite.*'prompt 0'"):
        forward_by_budget(
            batch,
            lambda part: part.columns["logprobs"] * float("nan"),
            lengths=batch.response_lengths,
            engine=Engine(),
            device=torch.device("cpu"),
            name="the critic",
        )


BEGINNING = st.lists(st.integers(0, 2), min_size=8, max_size=40)
END = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@settings(max_examples=200)
@given(st.lists(BEGINNING, min_size=1, max_size=3), st.data())
def test_what_is_shared_are_equal_tokens_with_equal_ones_before(beginnings, data):
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(beginnings), END), min_size=1, max_size=8))
    sequences = [begin + end for begin, end in pairs]
    tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.int32)
    lengths = np.array([len(each) for each in sequences])
    shared = find_shared(tokens, lengths)
    assert shared is not None or len(set(map(tuple, sequences))) > 1 or len(sequences) == 1
    if shared is None:
        return
    own, places = shared.own.numpy(), shared.places.numpy()
    assert len(own) == sum(shared.fresh) <= (1 - WORTH) * len(tokens)
    assert shared.lengths == tuple(lengths)
    starts = np.cumsum(lengths) - lengths
    assert all(own[places[starts + lengths - 1]] == starts + lengths - 1)  # the last token of each is its own
    for start, sequence, fresh in zip(starts, sequences, shared.fresh, strict=True):
        assert fresh == len(sequence) or len(sequence) - fresh >= ALIKE
        for at in range(len(sequence)):
            there = own[places[start + at]]
            first = starts[np.searchsorted(starts, there, side="right") - 1]
            assert there - first == at
            assert tokens[first : there + 1].tolist() == sequence[: at + 1]


def test_responses_to_a_prompt_share_it_wherever_they_are():
    prompts = [np.arange(100, 150), np.arange(300, 310)]
    sequences = [np.append(prompts[number % 2], [number, number]) for number in range(6)]
    shared = find_shared(np.concatenate(sequences), np.array([len(each) for each in sequences]))
    assert shared.fresh == (52, 12, 2, 2, 2, 2)


def test_a_template_that_all_prompts_begin_with_is_shared_if_it_is_worth_it():
    rng, preamble = np.random.default_rng(0), np.arange(10)
    for own, worth in ((20, True), (60, False)):
        sequences = [np.concatenate([preamble, rng.integers(100, 1000, own)]) for _ in range(8)]
        shared = find_shared(np.concatenate(sequences), np.array([len(each) for each in sequences]))
        assert (shared is not None) == worth
        assert not worth or shared.fresh == (30, *[20] * 7)
