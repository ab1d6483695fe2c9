"""The prompt format a config names."""

from typing import Annotated

from pydantic import AfterValidator

PROMPT = "{prompt}"
KINDS = ("auto", "chat", "pku")


def check_template(value: str) -> str:
    """`value` if it is one of KINDS or a text that holds {prompt} once. Raises ValueError."""
    if value not in KINDS and value.count(PROMPT) != 1:
        raise ValueError(
            f"template {value!r} is neither {', '.join(KINDS)} nor a text that holds {PROMPT} exactly once,"
            " such as 'Q: {prompt} A:'"
        )
    return value


PromptFormat = Annotated[str, AfterValidator(check_template)]
"""auto, chat, pku, or a text that holds {prompt} once."""
