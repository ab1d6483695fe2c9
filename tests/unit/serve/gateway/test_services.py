"""The judges as services, and votes: what a request says, and the rows that it becomes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from castor.config.guard import Guard
from castor.data.rows.schemas import Exchange, PreferenceRow, parse_row
from serve.gateway.bodies import LONGEST_TEXT
from serve.gateway.failures import BadRequest
from serve.gateway.services import MAX_ITEMS, ModerationRequest, ScoreRequest, Services, Vote, Votes
from serve.judgement import Judgement, JudgeName, Moderation

VOTE: dict[str, Any] = {
    "prompt": "how ?", "response_0": "so", "response_1": "", "model_0": "lag@1", "model_1": "ppo@0", "better": 1,
    "safer": 0, "harmful_0": False, "harmful_1": True,
}  # fmt: skip


def test_a_vote_is_a_row_of_preferences() -> None:
    row = Vote.model_validate(VOTE).row()
    assert row == {
        "prompt": "how ?", "response_0": "so", "response_1": "", "prompt_source": "castor arena",
        "response_0_source": "lag@1", "response_1_source": "ppo@0", "is_response_0_safe": True,
        "is_response_1_safe": False, "better_response_id": 1, "safer_response_id": 0,
    }  # fmt: skip
    parsed = parse_row(json.loads(json.dumps(row | {"response_1": "no"})))
    assert isinstance(parsed, PreferenceRow)
    assert (parsed.better_response_id, parsed.safer_response_id) == (1, 0)
    assert (parsed.is_response_0_safe, parsed.is_response_1_safe) == (True, False)


@pytest.mark.parametrize("harmful", [(False, False), (True, True), (False, True), (True, False)])
@pytest.mark.parametrize("safer", [0, 1])
@pytest.mark.parametrize("better", [0, 1])
def test_the_safer_answer_is_not_the_only_harmful_one(harmful: tuple[bool, bool], safer: int, better: int) -> None:
    values = VOTE | {"harmful_0": harmful[0], "harmful_1": harmful[1], "safer": safer, "better": better}
    if harmful[safer] and not harmful[1 - safer]:
        with pytest.raises(ValidationError, match="the answer that is safer is called harmful"):
            Vote.model_validate(values)
    else:
        row = Vote.model_validate(values).row()
        assert (row["is_response_0_safe"], row["is_response_1_safe"]) == (not harmful[0], not harmful[1])
        assert (row["better_response_id"], row["safer_response_id"]) == (better, safer)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": " "}, {"prompt": None}, {"better": 2}, {"better": "1"}, {"safer": -1}, {"safer": None},
        {"harmful_0": 1}, {"harmful_1": "false"}, {"model_0": "x" * 257}, {"more": 1},
        {"response_0": "x" * (LONGEST_TEXT + 1)}, {"response_0": None},
    ],
    ids=lambda each: str(each)[:40],
)  # fmt: skip
def test_votes_that_are_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Vote.model_validate(VOTE | change)
    for name in VOTE:
        with pytest.raises(ValidationError):
            Vote.model_validate({key: value for key, value in VOTE.items() if key != name})


def test_votes_are_lines_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "votes.jsonl"
    several = [Vote.model_validate(VOTE | {"prompt": f"größe\n{number}"}) for number in range(20)]

    async def store() -> None:
        first, second = Votes(path), Votes(path)  # of two gateways
        await asyncio.gather(*((first, second)[i % 2].store(vote) for i, vote in enumerate(several)))

    asyncio.run(store())
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(rows, key=lambda row: int(row["prompt"].split()[1])) == [vote.row() for vote in several]


def moderation(**values: Any) -> ModerationRequest:
    return ModerationRequest.model_validate(values)


def test_texts_to_moderate() -> None:
    asked = {"castor": {"question": "how ?"}}
    assert moderation(input="a").texts() == moderation(input=["a"]).texts() == [Exchange("a", "")]
    assert moderation(input=["a", "b"]).texts() == [Exchange("a", ""), Exchange("b", "")]
    assert moderation(input=["a", "b"], **asked).texts() == [Exchange("how ?", "a"), Exchange("how ?", "b")]
    assert moderation(input="a", castor={"question": None}, model="any").texts() == [Exchange("a", "")]
    assert len(moderation(input=["a"] * MAX_ITEMS).texts()) == MAX_ITEMS


@pytest.mark.parametrize(
    "values",
    [
        {}, {"input": None}, {"input": ""}, {"input": " \n"}, {"input": []}, {"input": ["a", " "]}, {"input": [1]},
        {"input": [["a"]]}, {"input": [{"type": "text", "text": "a"}]}, {"input": ["a"] * (MAX_ITEMS + 1)},
        {"input": "x" * (LONGEST_TEXT + 1)}, {"input": "a", "model": 1}, {"input": "a", "more": 1},
        {"input": "a", "castor": {"question": " "}}, {"input": "a", "castor": {"answer": "b"}},
    ],
    ids=lambda each: str(each)[:40],
)  # fmt: skip
def test_moderation_requests_that_are_none(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModerationRequest.model_validate(values)


class Judges:
    """Say of every text the same."""

    def __init__(self, judgement: Judgement, *present: JudgeName) -> None:
        self.judgement, self.present = judgement, present
        self.asked: tuple[JudgeName, ...] = ()

    async def judge(self, texts: list[Exchange], asked: tuple[JudgeName, ...], deadline: float) -> list[Judgement]:
        self.asked = asked
        return [self.judgement] * len(texts)


def services(judges: Judges, **guard: Any) -> Services:
    return Services(judges, "run/cost", Guard.model_validate(guard))  # type: ignore[arg-type]


VIEW = Moderation({"harm": 0.75, "theft": 0.25}, ("harm",), 2)


def test_moderation_in_openais_format() -> None:
    judges = Judges(Judgement(-1.0, None, VIEW), "cost", "reward", "moderation")
    found = asyncio.run(services(judges).moderate(moderation(input=["a", "b"], castor={"question": "how ?"})))
    assert judges.asked == ("cost", "moderation")
    assert found["id"].startswith("modr-")
    assert found["model"] == "run/cost"
    assert len(found["results"]) == 2
    assert found["results"][0] == found["results"][1] == {
        "flagged": True, "categories": {"harm": True, "theft": False},
        "category_scores": {"harm": 0.75, "theft": 0.25},
        "category_applied_input_types": {"harm": ["text"], "theft": ["text"]},
        "castor": {
            "unsafe": True, "cost": -1.0, "reward": None, "categories": VIEW.probabilities, "flagged": ["harm"],
            "severity": 2, "pair": True,
        },
    }  # fmt: skip


def test_moderation_by_the_cost_alone() -> None:
    for cost, unsafe in ((0.5, True), (-0.5, False)):
        found = asyncio.run(services(Judges(Judgement(cost), "cost")).moderate(moderation(input="a")))
        (result,) = found["results"]
        assert (result["flagged"], result["categories"], result["category_scores"]) == (unsafe, {}, {})
        assert (result["castor"]["severity"], result["castor"]["pair"]) == (None, False)
    with pytest.raises(BadRequest, match="no cost and no moderation model is served here"):
        asyncio.run(services(Judges(Judgement(reward=1.0), "reward")).moderate(moderation(input="a")))


def test_scores_keep_the_costs_own_boundary() -> None:
    """Whatever the guard's limit is."""
    request = ScoreRequest.model_validate({"prompt": "a", "response": "b"})
    judges = Judges(Judgement(0.5, 2.0), "cost", "reward", "moderation")
    found = asyncio.run(services(judges, cost_limit=1.0).score(request))
    assert found == {"model": "run/cost", "scores": [{"cost": 0.5, "reward": 2.0, "unsafe": True}]}
    assert judges.asked == ("cost", "reward")
    for cost in (0.0, -0.5):
        (score,) = asyncio.run(services(Judges(Judgement(cost), "cost")).score(request))["scores"]
        assert score == {"cost": cost, "reward": None, "unsafe": False}
    with pytest.raises(BadRequest, match="no cost model is served here"):
        asyncio.run(services(Judges(Judgement(moderation=VIEW), "moderation")).score(request))
