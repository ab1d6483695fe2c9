"""Ratios of the bench's section on serving."""

from benchmarks.bench.serve import ratios_of


def server(tokens_per_s, first_ms):
    return {"tokens_per_s": tokens_per_s, "ttft_ms": {"p50": first_ms}}


def test_throughput_is_a_ratio_and_the_first_token_a_difference():
    turns = [
        {"castor": server(90.0, 25.0), "bare": server(100.0, 20.0)},
        {"castor": server(80.0, 40.0), "bare": server(100.0, 20.0)},
        {"castor": server(99.0, 31.0), "bare": server(100.0, 20.0)},
    ]
    (rate, later), figures = ratios_of("tiny", 0.9, {"8 at a time": turns})
    assert rate.values == (0.9, 0.8, 0.99)
    assert rate.median == 0.9
    assert rate.holds
    assert later.values == (5.0, 20.0, 11.0)
    assert later.median == 11.0
    assert not later.holds
    assert figures["tiny, 8 at a time: castor, tokens/s"] == 90.0
