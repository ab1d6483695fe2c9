"""Prompt formats: the tokenizer's chat template, PKU's, and a text of the config."""

import pytest

from castor.config.demo_model import DemoModel
from castor.config.template import check_template
from castor.data.tokens.template import PromptTemplate
from castor.io.errors import CastorError
from castor.models.tiny import train_tokenizer

HISTORY = (("a {x}", "b"), ("c", "d"))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DemoModel(tokenizer="bpe", vocab_size=300), ["how are you ?"])


def test_pku_is_verbatim_and_closes_every_earlier_answer(tokenizer):
    template = PromptTemplate(tokenizer, "pku")
    assert template.prompt_text("hi") == "BEGINNING OF CONVERSATION: USER: hi ASSISTANT:"
    assert template.prompt_text("e", HISTORY) == (
        "BEGINNING OF CONVERSATION: USER: a {x} ASSISTANT:b<eos>USER: c ASSISTANT:d<eos>USER: e ASSISTANT:"
    )


def test_a_text_of_the_config_is_repeated_for_each_turn(tokenizer):
    template = PromptTemplate(tokenizer, "{Q}: {prompt}\nA:")
    assert template.prompt_text("{prompt} {}") == "{Q}: {prompt} {}\nA:"
    assert template.prompt_text("e", HISTORY[:1]) == "{Q}: a {x}\nA:b<eos>{Q}: e\nA:"


def test_an_earlier_answer_ends_with_the_token_that_ends_a_response(tokenizer):
    for kind in ("pku", "Q: {prompt} A:"):
        template = PromptTemplate(tokenizer, kind)
        ids = template.encode_prompt("c", (("a", "b"),))
        first = [*template.encode_prompt("a"), *template.encode_response("b")]
        assert ids[: len(first)] == first


def test_chat_renders_the_whole_conversation(tokenizer):
    template = PromptTemplate(tokenizer)
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, "abc", strict=True)]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert template.chat
    assert template.prompt_text("c", (("a", "b"),)) == wanted


@pytest.mark.parametrize("kind", ["llama", "{prompt} {prompt}", ""])
def test_a_format_must_hold_the_prompt_once(tokenizer, kind):
    with pytest.raises(ValueError, match=r"holds \{prompt\} exactly once"):
        check_template(kind)
    with pytest.raises(CastorError, match=r"holds \{prompt\} exactly once"):
        PromptTemplate(tokenizer, kind)
