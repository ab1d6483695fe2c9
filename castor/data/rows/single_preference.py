"""One preference from two: the labels that single-preference baselines are trained on."""

import hashlib
from dataclasses import replace
from typing import Literal

from castor.data.rows.schemas import PreferenceRow
from castor.data.sources.record import RowError


def single_preference(row: PreferenceRow, rule: Literal["harmless_first", "mixture"]) -> PreferenceRow:
    """The row with one overall preference as its `better_response_id`.

    harmless_first: the safe response where the other is unsafe, else the more helpful one, as a person weighs who is
    asked which response is better overall. mixture: the more helpful response in about half of the rows and the less
    harmful one in the others, as in HH-RLHF, whose pairs were compared for one of the two. Which half a row is in
    depends on its texts alone. Raises RowError when a label is missing.
    """
    if row.better_response_id is None or row.safer_response_id is None:
        raise RowError("missing label", "one preference is made from better_response_id and safer_response_id")
    if rule == "mixture":
        texts = "\0".join((row.prompt, *sorted((row.response_0, row.response_1))))
        helpful = hashlib.blake2b(texts.encode(), digest_size=1).digest()[0] < 128
        return row if helpful else replace(row, better_response_id=row.safer_response_id)
    flags = row.is_response_0_safe, row.is_response_1_safe
    if None in flags:
        raise RowError("missing label", "is_response_0_safe or is_response_1_safe is absent or null")
    return row if flags[0] == flags[1] else replace(row, better_response_id=row.safer_response_id)
