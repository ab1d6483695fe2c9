"""A policy's judged response, and the JSONL file of such rows that an evaluation keeps."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from castor.io.errors import CastorError
from castor.io.files import write_jsonl
from castor.taxonomy import Severity

Kind = Literal["harmful", "benign", "lookalike"]
SEVERITIES = tuple(level.name.lower() for level in Severity)

# Strict: a file that holds "2.0" or 1 where a number or a verdict belongs was not written by Castor.
_Score = Annotated[float, Field(strict=True)]
_Verdict = Annotated[bool, Field(strict=True)]


@dataclass(frozen=True)
class JudgedResponse:
    """A policy's response to one held-out prompt, with every score and verdict it was given.

    `kind` is what the synthetic corpus knows of the prompt (None for real data); `category` is the harm category that
    the prompt was written for, where the corpus or the data says so; `severity` is an index into `SEVERITIES`. `reward`
    and `cost` come from the score models (cost > 0 means unsafe), None where there is no such model; `scores` are the
    further judges', by name. `harmful`, `helpfulness` and `refusal` are the gold judge's, None where there is none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str
    response: str
    kind: Kind | None
    category: str | None
    severity: Annotated[int, Field(ge=0, lt=len(SEVERITIES), strict=True)] | None
    reward: _Score | None
    cost: _Score | None
    harmful: _Verdict | None
    helpfulness: _Score | None
    refusal: _Verdict | None
    n_tokens: Annotated[int, Field(ge=0, strict=True)]
    scores: dict[str, _Score] = field(default_factory=dict)


def score_by(judge: str, row: JudgedResponse) -> float:
    """The score that the judge of that name gave: `reward`, `cost`, or a further one. Raises ValueError for none."""
    score = {"reward": row.reward, "cost": row.cost}.get(judge, row.scores.get(judge))
    if score is None:
        raise ValueError(f"judge {judge!r} has not scored the response to {row.prompt[:60]!r}")
    return score


_ROW = TypeAdapter(JudgedResponse)


def write_responses(path: str | Path, rows: Iterable[JudgedResponse]) -> None:
    """Write one JSON object a line, whole or not at all; `read_responses` gives back equal rows.

    Raises ValueError on NaN or an infinity, and CastorError when the disk is full.
    """
    write_jsonl(path, (asdict(row) for row in rows))


def read_responses(path: str | Path) -> list[JudgedResponse]:
    """Read what `write_responses` wrote. Raises CastorError naming the line that is no such row."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                # pydantic's own JSON parser would refuse an escaped lone surrogate.
                row = _ROW.validate_python(json.loads(line))
            except ValueError as error:
                raise CastorError(
                    f"{path}, line {number}, is not a judged response ({_reason(error)}); run evaluation again"
                ) from error
            rows.append(row)
    return rows


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "row"
    return f"{where}: {first['msg']}"
