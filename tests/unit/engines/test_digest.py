"""The digest of weights: values worked by hand, a reference in whole numbers, and what it must notice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.weights.digest import ROW, ROWS_AT_A_TIME, Digest, checksum

BLOCK = ROW * ROWS_AT_A_TIME["cpu"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn]


def digest_of(*tensors):
    digest = Digest()
    assert [name for name, _ in digest.adding(tensors)] == [name for name, _ in tensors]
    return digest.over(None)


def reference(tensor):
    """The two sums in whole numbers of any size, from the bytes of the tensor."""
    raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    raw += bytes(-len(raw) % 4)
    words = [int.from_bytes(raw[i : i + 4], "little", signed=True) for i in range(0, len(raw), 4)]
    sums = sum(words), sum(i * word for i, word in enumerate(words))
    return [(each + 2**63) % 2**64 - 2**63 for each in sums]


def random(count, dtype, seed=0):
    words = torch.randint(0, 256, (count * dtype.itemsize,), generator=torch.Generator().manual_seed(seed))
    raw = words.to(torch.uint8)
    return (raw % 2).view(dtype) if dtype == torch.bool else raw.view(dtype)


@pytest.mark.parametrize(
    ("tensor", "sums"),
    [
        (torch.tensor([1, 2, 3], dtype=torch.int32), [6, 0 * 1 + 1 * 2 + 2 * 3]),
        (torch.tensor([0.0, -0.0]), [-(2**31), -(2**31)]),
        (torch.tensor([1.0, 2.0, 1.0], dtype=torch.bfloat16), [0x40003F80 + 0x3F80, 0x3F80]),  # 1 is 3F80, 2 is 4000
        (torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int8), [0x04030201 + 0x0605, 0x0605]),
        (torch.tensor(7, dtype=torch.int64), [7, 0]),
        (torch.empty(0, 3), [0, 0]),
    ],
)
def test_sums_worked_by_hand(tensor, sums):
    assert checksum(tensor).tolist() == sums == reference(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 4 * ROW, 2 * BLOCK + 7])
def test_sums_of_all_types_and_of_sizes_beyond_a_block(count, dtype):
    tensor = random(count, dtype, count)
    assert checksum(tensor).tolist() == reference(tensor)


def test_sums_that_are_larger_than_64_bits():
    tensor = torch.full((3 * BLOCK,), 2**31 - 1, dtype=torch.int32)
    assert checksum(tensor).tolist() == reference(tensor)


@given(st.integers(1, 40), st.integers(0, 7), st.sampled_from(DTYPES))
def test_how_a_tensor_lies_in_memory_does_not_matter(rows, first, dtype):
    whole = random(first + rows * 6, dtype, rows)
    part = whole[first:].view(rows, 6)
    assert checksum(part).tolist() == reference(part.clone())
    assert checksum(part.T).tolist() == reference(part.T.contiguous())


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


def test_signs_that_have_changed_twice_are_noticed():
    tensor = torch.ones(64)
    other = tensor.clone()
    other[[3, 11]] *= -1  # in 64-bit words, both sums would be what they were
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
