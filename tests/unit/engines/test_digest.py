"""The digest of weights: values worked by hand, a reference in whole numbers, and what it must notice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.weights.digest import CACHED_ROWS, ROW, Digest, mixed, sums

BLOCK = ROW * CACHED_ROWS
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn]


def digest_of(*tensors):
    digest = Digest()
    assert [name for name, _ in digest.adding(tensors)] == [name for name, _ in tensors]
    return digest.over(None)


def signed(number):
    return (number + 2**63) % 2**64 - 2**63


def reference(tensor):
    """The sums in whole numbers of any size, from the bytes of the tensor."""
    raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    raw += bytes(8 * ROW - len(raw) % (8 * ROW))
    words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
    rows = [words[i : i + ROW] for i in range(0, len(words), ROW)]
    return [signed(sum(each)) for each in [*zip(*rows, strict=True), *rows]]


def splitmix64(state):
    """What the generator gives after `state` steps from 0: Steele, Lea, Flood 2014, figure 16."""
    z = state * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def random(count, dtype, seed=0):
    words = torch.randint(0, 256, (count * dtype.itemsize,), generator=torch.Generator().manual_seed(seed))
    raw = words.to(torch.uint8)
    return (raw % 2).view(dtype) if dtype == torch.bool else raw.view(dtype)


@pytest.mark.parametrize(
    ("tensor", "columns", "rows"),
    [
        (torch.tensor([1, 2, 3]), {0: 1, 1: 2, 2: 3}, [6]),
        (torch.tensor([0.0, -0.0, 0.0, -0.0]), {0: -(2**63), 1: -(2**63)}, [0]),
        (torch.tensor([1.0, 2.0, 1.0], dtype=torch.bfloat16), {0: 0x3F80_4000_3F80}, [0x3F80_4000_3F80]),
        (torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], dtype=torch.int8),
         {0: 0x0807060504030201, 1: 0x0A09}, [0x0807060504030201 + 0x0A09]),
        (torch.tensor(7, dtype=torch.int16), {0: 7}, [7]),
        (torch.tensor([5] + [0] * ROW + [9]), {0: 5, 1: 9}, [5, 9]),
        (torch.empty(0, 3), {}, [0]),
    ],
)  # fmt: skip
def test_sums_worked_by_hand(tensor, columns, rows):
    assert sums(tensor).tolist() == [columns.get(i, 0) for i in range(ROW)] + rows == reference(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8 * ROW, 2 * BLOCK + 7])
def test_sums_of_all_types_and_of_sizes_beyond_a_block(count, dtype):
    tensor = random(count, dtype, count)
    assert sums(tensor).tolist() == reference(tensor)


def test_sums_that_are_larger_than_64_bits():
    tensor = torch.full((3 * BLOCK,), 2**63 - 1)
    assert sums(tensor).tolist() == reference(tensor)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_the_sums_are_hashed_with_their_places(values):
    found = mixed(torch.tensor(values, dtype=torch.int64))
    steps = (value + place * 0x9E3779B97F4A7C15 for place, value in enumerate(values, start=1))
    undone = pow(0x9E3779B97F4A7C15, -1, 2**64)
    assert int(found) == signed(sum(splitmix64(step * undone % 2**64) for step in steps))


def test_the_hash_gives_the_numbers_that_were_published():
    found = [int(mixed(torch.tensor([0] * count))) for count in (1, 2, 3)]
    numbers = [each % 2**64 for each in (found[0], found[1] - found[0], found[2] - found[1])]
    assert numbers == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # splitmix64 from 0


@given(st.integers(1, 40), st.integers(0, 7), st.sampled_from(DTYPES))
def test_how_a_tensor_lies_in_memory_does_not_matter(rows, first, dtype):
    whole = random(first + rows * 6, dtype, rows)
    part = whole[first:].view(rows, 6)
    assert sums(part).tolist() == reference(part.clone())
    assert sums(part.T).tolist() == reference(part.T.contiguous())


@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16]))
def test_swapped_elements_are_noticed(first, second, dtype):
    tensor = torch.arange(1, 101).to(dtype)
    swapped = tensor.clone()
    swapped[[first, second]] = swapped[[second, first]]
    assert (digest_of(("w", swapped)) == digest_of(("w", tensor))) == (first == second)


@given(st.integers(0, 4 * 33 - 1), st.integers(0, 7))
def test_a_changed_bit_is_noticed(byte, bit):
    tensor = random(33, torch.float32)
    other = tensor.clone()
    other.view(torch.uint8)[byte] ^= 1 << bit
    assert digest_of(("w", other)) != digest_of(("w", tensor))


@pytest.mark.parametrize("places", [(3, 11), (3, 3 + 2 * ROW), (1, 3, 5)])
def test_signs_that_have_changed_are_noticed(places):
    tensor = torch.ones(4 * ROW)
    other = tensor.clone()
    other[list(places)] *= -1  # of two in one row or column the sum is what it was: twice 2^63 is 2^64
    assert digest_of(("w", other)) != digest_of(("w", tensor))


def test_swapped_tensors_names_types_shapes_and_sizes_are_noticed():
    a, b = random(8, torch.float32, 1), random(8, torch.float32, 2)
    digests = [
        digest_of(("a", a), ("b", b)),
        digest_of(("b", b), ("a", a)),
        digest_of(("a", b), ("b", a)),
        digest_of(("a", a), ("b", b), ("c", torch.empty(0))),
        digest_of(("a", a)),
        digest_of(),
        digest_of(("a", a.view(torch.int32)), ("b", b)),
        digest_of(("a", a.view(2, 4)), ("b", b)),
        digest_of(("a", torch.cat([a, torch.zeros(1)])), ("b", b)),
        digest_of(("a", torch.tensor([1, 0], dtype=torch.int8))),
        digest_of(("a", torch.tensor([1], dtype=torch.int8))),
    ]
    assert len(set(digests)) == len(digests)
