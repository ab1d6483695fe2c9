"""Request bodies of chat and text completions: what is read of them, and what is refused while a guard is on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from castor.config.guard import STRICTNESS, GuardMode
from castor.data.rows.fields import History
from castor.data.rows.schemas import Exchange
from serve.gateway.failures import BadRequest

Route = Literal["/v1/chat/completions", "/v1/completions"]
Priority = Literal["interactive", "batch"]
CHAT: Route = "/v1/chat/completions"
COMPLETIONS: Route = "/v1/completions"
LONGEST_TEXT = 1_000_000  # characters of one message


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
NotBlank = Annotated[Text, AfterValidator(_not_blank)]


class Body(BaseModel):
    """A JSON object of known fields, each of its very type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Body):
    """A part of a message. Images and other parts are refused."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn. `developer` is another name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = Field(None, max_length=64)

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Body):
    """OpenAI's."""

    include_usage: bool = False


class CastorOptions(Body):
    """Castor's own: a guard that is at least as strict as the configured one, and who goes first."""

    guard: GuardMode | None = None
    priority: Priority = "interactive"


class SamplingBody(Body):
    """What both routes have in common: every field that cannot carry text past the guard."""

    model: str = Field(max_length=256)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    n: int | None = Field(None, ge=1)
    stop: Text | list[Text] | None = Field(None)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=256)
    castor: CastorOptions = Field(default_factory=CastorOptions)

    @model_validator(mode="after")
    def _options_of_streams(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        return self


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions` of a policy with a guard."""

    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _turns_alternate(self) -> ChatBody:
        turns = [message for message in self.messages if message.role in ("user", "assistant")]
        leading = self.messages[: len(self.messages) - len(turns)]
        if any(message in turns for message in leading):
            raise ValueError("system messages come first")
        if len(turns) % 2 == 0 or any(each.role != ("user", "assistant")[i % 2] for i, each in enumerate(turns)):
            raise ValueError("messages must be of user and assistant in turn, and end with the user's")
        if any(each.role == "user" and not each.text.strip() for each in turns):
            raise ValueError("a user's message must not be blank")
        return self

    def exchange(self) -> Exchange:
        """The conversation as judges read it, without its answer. What a system message says is part of the question:
        the formats of training know no other place for it."""
        texts = [message.text for message in self.messages if message.role in ("user", "assistant")]
        system = [message.text for message in self.messages if message.role in ("system", "developer")]
        texts[0] = "\n\n".join([*system, texts[0]])
        *history, prompt = [*zip(texts[:-1:2], texts[1::2], strict=True), texts[-1]]
        return Exchange(str(prompt), "", tuple(history))


class CompletionBody(SamplingBody):
    """`POST /v1/completions` of a policy with a guard. The prompt is judged as the question."""

    prompt: NotBlank

    def exchange(self) -> Exchange:
        """Prompt, without its completion."""
        return Exchange(self.prompt, "", _NO_HISTORY)


_NO_HISTORY: History = ()
BODIES: dict[Route, type[ChatBody | CompletionBody]] = {CHAT: ChatBody, COMPLETIONS: CompletionBody}
# OpenAI's clients and vLLM's send these with values that ask for nothing; another value could carry text unjudged
HARMLESS: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False), "top_logprobs": (None,), "echo": (None, False), "prompt_logprobs": (None,),
    "tools": (None, []), "tool_choice": (None, "none"), "functions": (None, []), "best_of": (None, 1),
    "suffix": (None, ""), "logit_bias": (None, {}), "response_format": (None, {"type": "text"}), "store": (None, False),
    "metadata": (None, {}), "modalities": (None, ["text"]), "service_tier": (None, "auto", "default"),
}  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A request for answers. `body` is what the policy is sent of it."""

    route: Route
    model: str
    mode: GuardMode
    stream: bool
    priority: Priority
    body: dict[str, Any]
    include_usage: bool = False
    n: int = 1
    exchange: Exchange = field(default=Exchange("", ""))  # the question, where a guard is on

    def sample(self, number: int, **changes: Any) -> dict[str, Any]:
        """The body of one of several answers: each has a seed of its own, if there is one."""
        seed = self.body.get("seed")
        body = self.body | ({} if seed is None else {"seed": _wrapped(seed + number)}) | changes
        return {key: value for key, value in body.items() if value is not None}

    def instructed(self, instruction: str) -> Ask:
        """The same question, with an instruction behind it."""
        if self.route == COMPLETIONS:
            return replace(self, body=self.body | {"prompt": f"{self.body['prompt']}\n{instruction}\n"})
        *earlier, last = self.body["messages"]
        message = last | {"content": f"{last['content']}\n\n{instruction}"}
        return replace(self, body=self.body | {"messages": [*earlier, message]})

    def continued(self, said: str) -> dict[str, Any]:
        """Changes to the body that make the policy go on behind what it has said."""
        if not said:
            return {}
        if self.route == COMPLETIONS:
            return {"prompt": self.body["prompt"] + said}
        messages = [*self.body["messages"], {"role": "assistant", "content": said}]
        return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}


def head_of(values: Any) -> tuple[str, GuardMode | None]:
    """The model and the guard that a body asks for, before all of it is read. Raises BadRequest."""
    if not isinstance(values, dict):
        raise BadRequest("the body must be a JSON object")
    model, options = values.get("model"), values.get("castor") or {}
    if not isinstance(model, str):
        raise BadRequest("model must be the name of a model, a string", param="model")
    try:
        return model, CastorOptions.model_validate(options).guard
    except ValidationError as error:
        raise _told(error, "castor") from None


def chosen_mode(configured: GuardMode, wanted: GuardMode | None) -> GuardMode:
    """The mode of a request. Raises BadRequest when it asks for a laxer one than is configured."""
    if wanted is None:
        return configured
    if STRICTNESS[wanted] < STRICTNESS[configured]:
        raise BadRequest(
            f"the guard of this model is {configured}: a request can only be stricter", param="castor.guard"
        )
    return wanted


def read(route: Route, values: dict[str, Any], mode: GuardMode, longest: int | None, most: int) -> Ask:
    """A request for at most `most` answers of at most `longest` tokens each (None: as many as the model can).

    Without a guard the rest of the body is for vLLM's app to judge. With one, every field that could carry text past
    the judges is refused. Raises BadRequest.
    """
    values = dict(values)
    if mode == "off":
        return _unguarded(route, values, longest, most)
    for name, harmless in HARMLESS.items():
        if name in values and any(_same(values[name], value) for value in harmless):
            del values[name]
        elif name in values:
            raise BadRequest(f"{name} is not offered while the guard is on: it could carry text past it", param=name)
    try:
        body = BODIES[route].model_validate(values)
    except ValidationError as error:
        raise _told(error) from None
    n = body.n or 1
    if n > most:
        raise BadRequest(f"n is at most {most}", param="n")
    sent = body.model_dump(exclude={"castor", "stream", "stream_options", "n", "user"}, exclude_none=True)
    if isinstance(body, ChatBody):
        sent["messages"] = [
            {"role": "system" if each.role == "developer" else each.role, "content": each.text}
            for each in body.messages
        ]
        wanted = sent.pop("max_completion_tokens", None) or sent.pop("max_tokens", None)
    else:
        wanted = sent.pop("max_tokens", None)
    bounds = [each for each in (wanted, longest) if each is not None]
    if bounds:
        sent["max_tokens"] = min(bounds)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return Ask(route, body.model, mode, bool(body.stream), body.castor.priority, sent, usage, n, body.exchange())


def _unguarded(route: Route, values: dict[str, Any], longest: int | None, most: int) -> Ask:
    """What vLLM's app is sent as it stands, but for how much it may ask: there, "100" and 100.0 are numbers, too."""
    model, _ = head_of(values)
    options = CastorOptions.model_validate(values.pop("castor", None) or {})
    counts = {name: values.get(name) for name in ("n", "max_tokens", "max_completion_tokens")}
    for name, count in counts.items():
        if count is not None and type(count) is not int:
            raise BadRequest(f"{name} must be an integer", param=name)
    prompt = values.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and any(isinstance(each, str | list) for each in prompt) else 1
    if (counts["n"] or 1) * prompts > most:
        raise BadRequest(f"n is at most {most}, over all prompts", param="n")
    if longest is not None:
        name = "max_completion_tokens" if counts["max_completion_tokens"] is not None else "max_tokens"
        asked = counts[name]
        values[name] = longest if asked is None else min(asked, longest)
    return Ask(route, model, "off", values.get("stream") is True, options.priority, values)


def encoded(body: dict[str, Any]) -> bytes:
    """As JSON."""
    return json.dumps(body, ensure_ascii=False).encode()


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other


def _wrapped(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63


def _told(error: ValidationError, where: str = "") -> BadRequest:
    """The first thing that is wrong. The input is not repeated: it is the user's text."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join([*([where] if where else []), *(str(part) for part in first["loc"])])
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = "unknown, or not offered while the guard is on"
    return BadRequest(f"{param}: {what}" if param else what, param=param or None)
