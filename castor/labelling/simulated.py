"""Preference labels from the simulated annotator of the synthetic corpus."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from castor.config.data import SyntheticOptions
from castor.synthetic.annotator import annotate_pair
from castor.synthetic.judge import judge


def sampled_pairs(
    prompt: str, responses: Sequence[str], rng: random.Random, options: SyntheticOptions, pairs_per_prompt: int
) -> list[dict[str, Any]]:
    """At most `pairs_per_prompt` annotated pairs of a policy's responses, pairs of different gold helpfulness first.

    Blank and repeated responses are left out, so there may be fewer pairs, or none. Which response of a pair comes
    first is random.

    Raises:
        CastorError: the prompt is not one of the synthetic corpus.
    """
    distinct = list(dict.fromkeys(response for response in responses if response.strip()))
    helpfulness = {response: judge(prompt, response).helpfulness for response in distinct}
    candidates = list(itertools.combinations(distinct, 2))
    rng.shuffle(candidates)
    candidates.sort(key=lambda pair: helpfulness[pair[0]] == helpfulness[pair[1]])
    rows = []
    for candidate in candidates[:pairs_per_prompt]:
        first, second = rng.sample(candidate, 2)
        rows.append(annotate_pair(prompt, first, second, rng, options))
    return rows
