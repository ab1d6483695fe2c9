"""From a prompt and a response to token ids, in the format the models were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from castor.errors import CastorError

# Verbatim, so that PKU's released models score correctly (safe-rlhf configs/constants.py);
# no space after the last colon.
PKU_PROMPT = "BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:"


def load_tokenizer(model: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. Raises CastorError when there is none or it lacks an EOS or pad token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise CastorError(f"no tokenizer could be loaded from {model!r}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise CastorError(f"the tokenizer of {model!r} has no EOS token, so a response could never end: set eos_token")
    if tokenizer.pad_token_id is None:
        raise CastorError(f"the tokenizer of {model!r} has no pad token: set pad_token (eos_token will do) and save it")
    return tokenizer


def require_same_tokenizer(policy: str | Path, other: str | Path, what: str) -> None:
    """Raise CastorError unless both folders tokenise alike: a critic reads the policy's own token ids."""
    ours, theirs = load_tokenizer(str(policy)), load_tokenizer(str(other))
    if ours.get_vocab() != theirs.get_vocab() or ours.eos_token_id != theirs.eos_token_id:
        raise CastorError(
            f"{what} at {other} has another tokenizer than the policy at {policy}: "
            "its critic reads the policy's token ids, so train it from the same tokenizer"
        )


class PromptTemplate:
    """Formats and tokenises prompts and responses for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: str = "auto") -> None:
        """`kind`: `chat` (the tokenizer's chat template), `pku`, or `auto` (chat if the tokenizer has one)."""
        if kind == "chat" and tokenizer.chat_template is None:
            raise CastorError("template: chat, but the tokenizer has no chat template: use template: pku, or add one")
        self.tokenizer = tokenizer
        self.chat = kind == "chat" or (kind == "auto" and tokenizer.chat_template is not None)

    def prompt_text(self, prompt: str) -> str:
        """The prompt as the model reads it, up to where its response begins."""
        if self.chat:
            messages = [{"role": "user", "content": prompt}]
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return PKU_PROMPT.format(prompt=prompt)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of the prompt."""
        # a chat template writes its own begin-of-text token; PKU's format leaves it to the tokenizer
        return self.tokenizer(self.prompt_text(prompt), add_special_tokens=not self.chat)["input_ids"]

    def encode_response(self, response: str) -> list[int]:
        """Token ids of the response, closed by the end-of-text token."""
        return [*self.tokenizer(response, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def decode_response(self, tokens: Sequence[int]) -> str:
        """The text of a response, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
