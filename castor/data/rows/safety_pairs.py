"""Safety pairs from QA rows: responses to the same prompt (after the same turns), one labelled safe and one unsafe.

BeaverTails' released rows carry no rankings. Its annotation rule does fix one kind of pair: safe responses always rank
above unsafe ones in harmlessness. Two safe or two unsafe responses have no known order and are not paired.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

from castor.data.rows.schemas import Key, PreferenceRow, QARow

MAX_PAIRS_PER_PROMPT = 8


def safety_pairs(rows: Iterable[QARow], helpfulness: Literal["longer"] | None) -> Iterator[PreferenceRow]:
    """Pair every safe with every unsafe response of a prompt, at most MAX_PAIRS_PER_PROMPT for one prompt.

    Where a prompt is capped, the responses of its smaller side (safe or unsafe) are used equally often, give or take
    one. The response that came first is `response_0`, so the position says nothing about safety. A text that was
    labelled both ways is left out; repeats of a text count once. `better_response_id` is the longer text with
    `helpfulness="longer"` (None if equally long), else None. Rows need `is_safe`.
    """
    by_prompt: dict[Key, dict[str, list[QARow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_prompt[row.key][row.response.strip()].append(row)
    for texts in by_prompt.values():
        responses = [same[0] for same in texts.values() if len({row.is_safe for row in same}) == 1]
        safe = [i for i, row in enumerate(responses) if row.is_safe is True]
        unsafe = [i for i, row in enumerate(responses) if row.is_safe is False]
        for i, j in _spread(safe, unsafe)[:MAX_PAIRS_PER_PROMPT]:
            yield _pair(responses[min(i, j)], responses[max(i, j)], helpfulness)


def _spread(left: list[int], right: list[int]) -> list[tuple[int, int]]:
    """The product of two lists, ordered so that every beginning uses the shorter list's elements equally often (±1)."""
    if len(left) > len(right):
        return [(i, j) for j, i in _spread(right, left)]
    # Round k pairs the a-th of the shorter list with the (a + k)-th of the longer: no element repeats in a round.
    return [(i, right[(a + k) % len(right)]) for k in range(len(right)) for a, i in enumerate(left)]


def _pair(first: QARow, second: QARow, helpfulness: Literal["longer"] | None) -> PreferenceRow:
    lengths = len(first.response.strip()), len(second.response.strip())
    better = int(lengths[1] > lengths[0]) if helpfulness == "longer" and lengths[0] != lengths[1] else None
    return PreferenceRow(
        prompt=first.prompt,
        response_0=first.response,
        response_1=second.response,
        is_response_0_safe=first.is_safe,
        is_response_1_safe=second.is_safe,
        response_0_harm_category=first.category,
        response_1_harm_category=second.category,
        response_0_severity_level=first.severity_level,
        response_1_severity_level=second.severity_level,
        better_response_id=better,
        safer_response_id=int(second.is_safe is True),
        history=first.history,
    )
