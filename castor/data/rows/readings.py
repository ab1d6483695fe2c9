"""Which fields of a raw row are its prompt, what was said before it, and its responses.

Rows come with the field names of PKU-SafeRLHF and BeaverTails, as Alpaca (instruction, input, output), as HH-RLHF
(chosen and rejected transcripts), and as chats (`messages`, or lists of messages in `prompt`, `chosen`, `rejected`).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

from castor.data.rows.fields import History, checked_text, decoded, described, plain, present_fields, wrong_type
from castor.data.sources.record import RowError

_RESPONSE_FIELDS = (
    ("response_0", "response_1"),
    ("chosen", "rejected"),
    ("response",),
    ("messages",),
    ("instruction", "output"),
)
"""What a row's responses are read from, the richest reading first: the first line whose fields are all there."""
_TRANSCRIPT_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TEXT_PARTS = ("text", "input_text", "output_text")

Turn = tuple[str, Any]  # role, text


class Reading(NamedTuple):
    """A raw row taken apart. Texts are as they stand in the row, not checked, except for the history's.

    `responses` holds none, one or two. `labels` holds all fields of the row that are there, of which those of
    PKU-SafeRLHF and BeaverTails are read.
    """

    prompt: Any
    history: History
    responses: tuple[Any, ...]
    labels: Mapping[str, Any]


class _Conversation(NamedTuple):
    history: History
    prompt: Any
    response: Any  # None where the user speaks last


def read_fields(raw: Mapping[str, Any]) -> Reading:
    """Take a row apart. `chosen` becomes response 0 with better_response_id 0: better at what, only the data set knows.

    Raises RowError for a row without a prompt and for a conversation that is none.
    """
    row = present_fields(raw)
    responses: tuple[Any, ...] = ()
    match fields := response_fields(row):
        case ("chosen", "rejected"):
            first, second = (_conversation(_side_turns(row, name)) for name in fields)
            if first[:2] != second[:2]:
                raise RowError("different conversations", "chosen and rejected do not answer the same prompt")
            if first.response is None or second.response is None:
                raise RowError("malformed conversation", "chosen or rejected does not end with the assistant")
            responses = first.response, second.response
            return Reading(first.prompt, first.history, responses, row | {"better_response_id": 0})
        case ("messages",):
            talk = _conversation(_messages(row["messages"], "messages"))
        case ("instruction", "output"):
            talk, responses = _conversation(_instruction_turns(row)), (row["output"],)
        case _:
            talk, responses = _conversation(_prompt_turns(row)), tuple(row[name] for name in fields)
    if talk.response is not None and responses:
        raise RowError("malformed conversation", f"the prompt of {' and '.join(fields)} ends with the assistant")
    return Reading(talk.prompt, talk.history, responses if talk.response is None else (talk.response,), row)


def response_fields(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that the responses of a row are read from; empty where it has none. `row` has no missing values."""
    return next((fields for fields in _RESPONSE_FIELDS if all(_is_there(row, name) for name in fields)), ())


def unread_fields(raw: Mapping[str, Any]) -> tuple[str, str] | None:
    """The fields that hold responses but are not read, and the richer ones read instead; None where there are none."""
    row = present_fields(raw)
    read = response_fields(row)
    held = ["response_0", "response_1", "chosen", "rejected", "response", "output"]
    unread = [name for name in held if name not in read and row.get(name) and _is_there(row, name)]
    if "messages" not in read and _ends_with_assistant(row.get("messages")):
        unread.append("messages")
    return (", ".join(unread), " and ".join(read)) if unread and read else None


def half_of_a_pair(raw: Mapping[str, Any]) -> tuple[str, str] | None:
    """A field with a response and the one that is missing beside it, without which a row is damaged; None without."""
    row = present_fields(raw)
    pairs = ((first, second) for fields in _RESPONSE_FIELDS for first, second in permutations(fields, 2))
    return next((pair for pair in pairs if pair[0] != "instruction" and _is_there(row, pair[0])), None)


def _is_there(row: Mapping[str, Any], name: str) -> bool:
    """Other data sets have a flag or a score named `chosen`, which is no response."""
    return name in row and (name not in ("chosen", "rejected") or isinstance(row[name], str | list | tuple))


def _ends_with_assistant(messages: Any) -> bool:
    messages = decoded(messages)
    last = messages[-1] if isinstance(messages, list | tuple) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def _prompt_turns(row: Mapping[str, Any]) -> list[Turn]:
    """What a response answers: `prompt` (a text after `history`, or messages), else `messages` or `instruction`."""
    if "prompt" in row:
        prompt = row["prompt"]
        if isinstance(prompt, list | tuple):
            return _messages(prompt, "prompt")
        return [*_history_turns(row), ("user", prompt)]
    if "messages" in row:
        return _messages(row["messages"], "messages")
    if "instruction" in row:
        return _instruction_turns(row)
    raise RowError("missing field", f"neither prompt, messages nor instruction; {described(row)}")


def _history_turns(row: Mapping[str, Any]) -> list[Turn]:
    """The field `history`: a list of [user, assistant] pairs."""
    value = decoded(row.get("history"))
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise wrong_type("history", "a list of [user, assistant] pairs", value)
    turns: list[Turn] = []
    for number, pair in enumerate(map(plain, value)):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise wrong_type(f"history[{number}]", "a [user, assistant] pair", pair)
        turns += [("user", pair[0]), ("assistant", pair[1])]
    return turns


def _instruction_turns(row: Mapping[str, Any]) -> list[Turn]:
    """The input follows the instruction after a space, as in safe-rlhf's loader (datasets/raw/alpaca.py)."""
    prompt = checked_text(row["instruction"], "instruction", "empty prompt")
    extra = row.get("input")
    if extra is not None and not isinstance(extra, str):
        raise wrong_type("input", "a string", extra)
    return [*_history_turns(row), ("user", f"{prompt} {extra}" if extra and extra.strip() else prompt)]


def _side_turns(row: Mapping[str, Any], name: str) -> list[Turn]:
    """`chosen` or `rejected`: a whole conversation (a transcript or messages), or what answers the row's prompt."""
    value = row[name]
    if not isinstance(value, str):
        spoken = _messages(value, name)
        return [*_prompt_turns(row), *spoken] if spoken and spoken[0][0] == "assistant" else spoken
    if _TRANSCRIPT_TURN.match(value) and not isinstance(row.get("prompt"), list | tuple):
        return _transcript_turns(value)
    return [*_prompt_turns(row), ("assistant", value)]


def _transcript_turns(value: str) -> list[Turn]:
    """HH-RLHF's format: turns that begin with a blank line and "Human:" or "Assistant:"."""
    _, *parts = _TRANSCRIPT_TURN.split(value)
    return [(_SPEAKERS[speaker], spoken.strip()) for speaker, spoken in zip(parts[::2], parts[1::2], strict=True)]


def _messages(value: Any, field: str) -> list[Turn]:
    value = decoded(value)
    if not isinstance(value, list | tuple):
        raise wrong_type(field, "a list of messages", value)
    turns: list[Turn] = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise wrong_type(f"{field}[{number}]", "an object with role and content", message)
        role = plain(message.get("role"))
        if not isinstance(role, str):
            raise wrong_type(f"{field}[{number}].role", "a string", role)
        turns.append((role, _content(message.get("content"), f"{field}[{number}].content")))
    return turns


def _content(value: Any, field: str) -> str:
    """A message's text. Parts are joined by line ends, as vLLM joins them when it serves a policy."""
    value = plain(value)
    if isinstance(value, str):
        return value
    if value is None:
        raise RowError("missing field", f"{field} is absent or null")
    if not isinstance(value, list | tuple):
        raise wrong_type(field, "a string or a list of text parts", value)
    return "\n".join(_part_text(part, f"{field}[{number}]") for number, part in enumerate(value))


def _part_text(part: Any, field: str) -> str:
    if not isinstance(part, Mapping):
        raise wrong_type(field, "an object with type and text", part)
    if part.get("type") not in _TEXT_PARTS:
        raise RowError("wrong type", f"{field} is a part of type {part.get('type')!r}; only parts of text are read")
    words = plain(part.get("text"))
    if not isinstance(words, str):
        raise wrong_type(f"{field}.text", "a string", words)
    return words


def _conversation(turns: Sequence[Turn]) -> _Conversation:
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
    users = [checked_text(text, f"history[{i}][0]", "empty prompt") for i, text in enumerate(earlier[::2])]
    answers = [checked_text(text, f"history[{i}][1]", "empty response") for i, text in enumerate(earlier[1::2])]
    return _Conversation(tuple(zip(users, answers, strict=True)), prompt, response)
