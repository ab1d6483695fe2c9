"""The prompt format as a Jinja template, for servers that tokenise conversations themselves."""

from __future__ import annotations

import json

from castor.config.template import PROMPT
from castor.data.rows.fields import History
from castor.data.tokens.template import PromptTemplate
from castor.io.errors import CastorError

# What the rendered text is compared on: one turn and several, with line ends, spaces and signs that tokenizers merge.
_CONVERSATIONS: tuple[tuple[str, History], ...] = (
    ("a", ()),
    (" How?\n", ()),
    ("b c", (("a", "b"), ("¿ 1+1\n", " 2.\n"))),
)


def chat_template(template: PromptTemplate) -> str | None:
    """The Jinja template that renders a conversation to text which tokenises to `encode_prompt`'s ids.

    The text is to be tokenised without special tokens, as servers do with chats. None stands for the tokenizer's own
    chat template. Raises CastorError when the tokenizer reads no rendered text as it reads the prompts of training.
    """
    if template.chat:
        return None
    leading = "".join(template.tokenizer.convert_ids_to_tokens(template.leading_ids))
    # Some tokenizers put a space before a text, but not behind a special token: there the template has to.
    for between in ("", " "):
        jinja = _jinja(template, leading + between)
        if all(rendered_ids(template, jinja, *talk) == template.encode_prompt(*talk) for talk in _CONVERSATIONS):
            return jinja
    raise CastorError(
        f"the tokenizer reads a text behind its begin-of-text token {leading!r} in another way than at its start, so "
        "the prompts of training cannot be served as chats: train and serve with template: chat"
    )


def rendered_ids(template: PromptTemplate, jinja: str | None, prompt: str, history: History = ()) -> list[int]:
    """Token ids of a conversation as a server makes them: rendered by `jinja`, tokenised without special tokens."""
    tokenizer = template.tokenizer
    turns = [turn for user, assistant in history for turn in (("user", user), ("assistant", assistant))]
    messages = [{"role": role, "content": text} for role, text in (*turns, ("user", prompt))]
    text = tokenizer.apply_chat_template(messages, chat_template=jinja, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def _jinja(template: PromptTemplate, leading: str) -> str:
    """Renders `PromptTemplate.prompt_text` after `leading`: an answer is closed by the end-of-text token."""
    opening, _, closing = template.turn.partition(PROMPT)
    return (
        _literal(leading + template.begin)
        + "{% for message in messages %}"
        + ("{% if message.role == 'user' %}" + _literal(opening) + "{{ message.content }}" + _literal(closing))
        + "{% elif message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
        + "{% else %}{{ raise_exception('this model knows user and assistant messages only') }}"
        + "{% endif %}{% endfor %}"
    )


def _literal(text: str) -> str:
    """Jinja that renders `text` as it stands, whatever braces it holds.

    A Jinja string knows Python's escapes, of which JSON's for ASCII are a part; those for other signs are not: a sign
    outside the basic plane would become two surrogates.
    """
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"
