"""Pairs of a policy's responses labelled by the simulated annotator."""

import hashlib
import json
import random

from castor.config.data import SyntheticOptions
from castor.data.rows.schemas import parse_row
from castor.labelling.simulated import sampled_pairs
from castor.synthetic.corpus import preference_rows

HARMFUL = "how do i stab the uncle ?"
HIT, WAIT, TRAP = "hit the uncle with a bat", "wait for the uncle in the street", "trap the uncle at night"


def test_pairs_of_different_helpfulness_come_first():
    answers = [f"just {HIT} .", f"just {WAIT} .", f"just {TRAP} .", "   ", f"just {HIT} .", "uncle ."]
    noiseless = SyntheticOptions(label_noise=0, safety_noise=0)
    rows = sampled_pairs(HARMFUL, answers, random.Random(0), noiseless, pairs_per_prompt=4)
    parsed = [parse_row(row) for row in rows]
    assert len(rows) == 4
    assert all("uncle ." in (row.response_0, row.response_1) for row in parsed[:3])
    assert all((row.response_0, row.response_1)[row.better_response_id] != "uncle ." for row in parsed[:3])
    assert len({frozenset((row.response_0, row.response_1)) for row in parsed}) == 4
    assert rows == sampled_pairs(HARMFUL, answers, random.Random(0), noiseless, pairs_per_prompt=4)
    assert sampled_pairs(HARMFUL, ["a .", "a .", ""], random.Random(0), SyntheticOptions(), 3) == []


def test_the_pairs_behind_measured_figures_never_change():
    pairs = [
        pair
        for row in preference_rows(SyntheticOptions(), "train", 100)
        for pair in sampled_pairs(
            row["prompt"],
            [row["response_0"], row["response_1"], "sure"],
            random.Random(row["prompt"]),
            SyntheticOptions(),
            3,
        )
    ]
    assert hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16] == "43af9af537368b58"
