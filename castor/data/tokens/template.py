"""From a prompt and a response to token ids, in the format the models were trained with.

Training, rollouts, scoring and serving all get their ids here; serving does so through a Jinja template that
`castor.data.tokens.chat_template` proves to give the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from castor.config.template import KINDS, PROMPT, check_template
from castor.data.rows.fields import History
from castor.data.tokens.prompt_stream import Prompt
from castor.io.errors import CastorError
from castor.io.files import read_json
from castor.model_reference import ModelLike, ModelReference

# Verbatim, so that PKU's released models score correctly (safe-rlhf configs/constants.py);
# no space after the last colon.
PKU_BEGIN = "BEGINNING OF CONVERSATION: "
PKU_TURN = "USER: {prompt} ASSISTANT:"
_SAMPLE = "a"  # a text to try a tokenizer with


def load_tokenizer(model: ModelLike) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises CastorError when there is none, it ships code that is not trusted, lacks an EOS or pad token, or has more
    tokens than the model's config says that the model has.
    """
    reference = ModelReference.of(model)
    folder = reference.local(weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=reference.trust_remote_code)
    except (OSError, ValueError) as error:
        raise reference.load_error(error, "has no tokenizer that could be loaded") from error
    if tokenizer.eos_token_id is None:
        raise CastorError(f"the tokenizer of {model} has no EOS token, so a response could never end: set eos_token")
    if tokenizer.pad_token_id is None:
        raise CastorError(f"the tokenizer of {model} has no pad token: set pad_token (eos_token will do) and save it")
    _check_vocabulary(reference, folder / "config.json", tokenizer)
    return tokenizer


def _check_vocabulary(model: ModelReference, config: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise CastorError when the tokenizer gives ids that the model has no embedding for."""
    settings = read_json(config) if config.is_file() else {}
    size = (settings.get("text_config") or settings).get("vocab_size")
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if size is not None and largest >= size:
        raise CastorError(
            f"{model} does not fit together: its tokenizer has token ids up to {largest}, and its config embeddings "
            f"for ids below {size} (vocab_size): take the model's own tokenizer, or resize its embeddings and save it"
        )


def tokenise_alike(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    """Whether token ids of one tokenizer mean the same to a model of the other."""
    return ours.get_vocab() == theirs.get_vocab() and ours.eos_token_id == theirs.eos_token_id


def require_same_tokenizer(policy: ModelLike, other: ModelLike, what: str) -> None:
    """Raise CastorError unless both models tokenise alike: a critic reads the policy's own token ids."""
    if not tokenise_alike(load_tokenizer(policy), load_tokenizer(other)):
        raise CastorError(
            f"{what} would start from {other}, which has another tokenizer than the policy at {policy}, whose token "
            "ids it has to read: give the signal a critic_model with the policy's tokenizer, or take an "
            "advantage.estimator without critics"
        )


def decode_response(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a response, without special tokens."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


class PromptTemplate:
    """Formats and tokenises prompts and responses for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: str = "auto") -> None:
        """`kind`: `chat` (the tokenizer's chat template), `pku`, `auto` (chat if the tokenizer has one, else pku), or
        a text that holds {prompt} once. Raises CastorError for another one, and for `chat` without a chat template.
        """
        if kind == "chat" and tokenizer.chat_template is None:
            raise CastorError("template: chat, but the tokenizer has no chat template: use template: pku, or add one")
        try:
            check_template(kind)
        except ValueError as error:
            raise CastorError(str(error)) from error
        self.tokenizer = tokenizer
        self.chat = kind == "chat" or (kind == "auto" and tokenizer.chat_template is not None)
        self.begin, self.turn = (PKU_BEGIN, PKU_TURN) if kind in KINDS else ("", kind)  # unless it is a chat
        # a chat template writes its own begin-of-text token; the other formats leave it to the tokenizer
        self.leading_ids = [] if self.chat else _leading_special_ids(tokenizer)

    def prompt_text(self, prompt: str, history: History = ()) -> str:
        """The prompt, after the exchanges before it, as the model reads it, up to where its response begins.

        PKU's format follows safe-rlhf (datasets/utils.py, format_prompt): it opens once, turns follow each other, and
        every earlier answer is closed by the end-of-text token. A format of the config does the same without opening:
        its text is repeated for each turn.
        """
        if self.chat:
            turns = [turn for user, assistant in history for turn in (("user", user), ("assistant", assistant))]
            messages = [{"role": role, "content": text} for role, text in (*turns, ("user", prompt))]
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        earlier = (self._asked(user) + assistant + str(self.tokenizer.eos_token) for user, assistant in history)
        return self.begin + "".join(earlier) + self._asked(prompt)

    def encode_prompt(self, prompt: str, history: History = ()) -> list[int]:
        """Token ids of the prompt and of what was said before it."""
        return self.encode_text(self.prompt_text(prompt, history))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text that begins with a `prompt_text`.

        A special token that the tokenizer appends to a text, such as EOS, is left out: the text goes on.
        """
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_text` of each; of many at once in less time, as the tokenizer takes them together, on all cores."""
        return [[*self.leading_ids, *ids] for ids in self._ids(texts)]

    def tokenised(self, prompts: Sequence[str]) -> list[Prompt]:
        """The prompts with their token ids."""
        encoded = self.encode_texts([self.prompt_text(prompt) for prompt in prompts])
        return [Prompt(prompt, np.array(ids, dtype=np.int32)) for prompt, ids in zip(prompts, encoded, strict=True)]

    def encode_response(self, response: str) -> list[int]:
        """Token ids of the response, closed by the end-of-text token."""
        return self.encode_responses([response])[0]

    def encode_responses(self, responses: Sequence[str]) -> list[list[int]]:
        """`encode_response` of each; of many at once in less time."""
        return [[*ids, self.tokenizer.eos_token_id] for ids in self._ids(responses)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []

    def _asked(self, prompt: str) -> str:
        return self.turn.replace(PROMPT, prompt)  # not str.format: the text may hold braces of its own


def _leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the special tokens that the tokenizer puts before every text, such as BOS."""
    bare = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(_SAMPLE)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return list(whole[:start])
    raise CastorError(
        f"the tokenizer gives {_SAMPLE!r} the ids {bare} without and {whole} with special tokens, so what it puts "
        "before a text cannot be told: use a tokenizer whose special tokens stand before or behind the text"
    )
