"""Rows of other families brought to the field names of PKU-SafeRLHF and BeaverTails.

Alpaca (instruction, input, output), HH-RLHF (chosen and rejected transcripts), and plain chat (`messages`, or `prompt`,
`chosen` and `rejected` as texts or as lists of messages).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from castor.data.rows.fields import History, checked_text, described, wrong_type
from castor.data.sources.record import RowError

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_FOREIGN = frozenset({"messages", "chosen", "rejected", "instruction", "input", "output"})

Turn = tuple[str, str]  # role, text


class Conversation(NamedTuple):
    """Earlier exchanges, the prompt, and the response that closes it (None where the user speaks last)."""

    history: History
    prompt: str
    response: str | None


def canonical(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """`raw` with the fields prompt, history, and response or response_0 and response_1; other fields stay.

    A row that has a response field is returned as it is. `chosen` becomes response 0 with better_response_id 0: what it
    is better at, only the data set knows. Raises RowError for a conversation that is none.
    """
    if "response" in raw or "response_0" in raw or "response_1" in raw:
        return raw
    if raw.get("messages") is not None:
        return _with_fields(raw, _conversation(_messages(raw["messages"], "messages")))
    if raw.get("chosen") is not None and raw.get("rejected") is not None:
        return _preference(raw)
    if raw.get("instruction") is not None and "output" in raw:
        return _alpaca(raw)
    if isinstance(raw.get("prompt"), Sequence) and not isinstance(raw["prompt"], str):
        return _with_fields(raw, _conversation(_messages(raw["prompt"], "prompt")))
    return raw


def _with_fields(raw: Mapping[str, Any], conversation: Conversation) -> dict[str, Any]:
    row = {name: value for name, value in raw.items() if name not in _FOREIGN}
    row |= {"prompt": conversation.prompt, "history": conversation.history}
    return row if conversation.response is None else row | {"response": conversation.response}


def _alpaca(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The input follows the instruction after a space, as in safe-rlhf's loader (datasets/raw/alpaca.py)."""
    prompt = checked_text(raw["instruction"], "instruction", "empty prompt")
    extra = raw.get("input")
    if extra is not None and not isinstance(extra, str):
        raise wrong_type("input", "a string", extra)
    row = {name: value for name, value in raw.items() if name not in _FOREIGN}
    return row | {"prompt": f"{prompt} {extra}" if extra and extra.strip() else prompt, "response": raw["output"]}


def _preference(raw: Mapping[str, Any]) -> dict[str, Any]:
    first, second = (_side(raw, name) for name in ("chosen", "rejected"))
    if first[:2] != second[:2]:
        raise RowError("different conversations", "chosen and rejected do not answer the same prompt")
    if first.response is None or second.response is None:
        raise RowError("malformed conversation", "chosen or rejected does not end with the assistant")
    row = {name: value for name, value in raw.items() if name not in _FOREIGN}
    row |= {"prompt": first.prompt, "history": first.history, "better_response_id": 0}
    return row | {"response_0": first.response, "response_1": second.response}


def _side(raw: Mapping[str, Any], name: str) -> Conversation:
    """`chosen` or `rejected`: a transcript, messages, or a text that answers `prompt`."""
    value, prompt = raw[name], raw.get("prompt")
    leading = [] if prompt is None or isinstance(prompt, str) else _messages(prompt, "prompt")
    if not isinstance(value, str):
        spoken = _messages(value, name)
        if isinstance(prompt, str) and spoken and spoken[0][0] == "assistant":
            leading = [("user", prompt)]
        return _conversation(leading + spoken)
    if leading:
        return _conversation([*leading, ("assistant", value)])
    if _TURN.match(value):
        return _conversation(_transcript(value))
    if prompt is None:
        raise RowError("missing field", f"{name} is no transcript, and there is no prompt; {described(raw)}")
    return Conversation((), str(prompt), value)


def _transcript(value: str) -> list[Turn]:
    """HH-RLHF's format: turns that begin with a blank line and "Human:" or "Assistant:"."""
    _, *parts = _TURN.split(value)
    return [(_SPEAKERS[speaker], spoken.strip()) for speaker, spoken in zip(parts[::2], parts[1::2], strict=True)]


def _messages(value: object, field: str) -> list[Turn]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise wrong_type(field, "a list of messages", value)
    turns: list[Turn] = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise wrong_type(f"{field}[{number}]", "an object with role and content", message)
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise wrong_type(f"{field}[{number}]", "a message whose role and content are strings", content)
        turns.append((role, content))
    return turns


def _conversation(turns: Sequence[Turn]) -> Conversation:
    """Turns that go user, assistant, user, ... after at most one system message.

    The system message is put in front of the first prompt, after it a blank line: not every prompt format has a place
    of its own for one.
    """
    roles = [role for role, _ in turns]
    system = ""
    if roles[:1] == ["system"]:
        system, turns = turns[0][1], turns[1:]
    spoken = [content for _, content in turns]
    if not turns or any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(turns)):
        shown = ", ".join(roles[:6]) or "nobody"
        raise RowError("malformed conversation", f"user and assistant do not take turns: {shown}")
    if system.strip():
        spoken[0] = f"{system}\n\n{spoken[0]}"
    response = spoken.pop() if len(spoken) % 2 == 0 else None
    *earlier, prompt = spoken
    return Conversation(tuple(zip(earlier[::2], earlier[1::2], strict=True)), prompt, response)
