"""Prompts that fit a model's context."""

from __future__ import annotations

from castor.data.tokens.prompt_stream import Prompt
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.io.errors import CastorError
from castor.io.files import write_jsonl
from castor.models.policy import context_length
from trainers.context import Context


def fitting_prompts(
    context: Context, stage: str, prompts: list[str], model: str, max_prompt_tokens: int
) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens, with their ids; longer ones are dropped, counted and listed.

    Raises CastorError when none is left.
    """
    template = PromptTemplate(load_tokenizer(model), context.config.template)
    tokenised = [template.tokenised(prompt) for prompt in prompts]
    kept = [prompt for prompt in tokenised if len(prompt.ids) <= max_prompt_tokens]
    long = [(prompt.text, len(prompt.ids)) for prompt in tokenised if len(prompt.ids) > max_prompt_tokens]
    if long:
        path = context.folder.path / f"{stage}.long_prompts.jsonl"
        write_jsonl(path, ({"reason": "prompt too long", "tokens": n, "prompt": p} for p, n in long))
        context.terminal.line(f"  dropped {len(long):,} prompts of more than {max_prompt_tokens} tokens (see {path})")
    if not kept:
        raise CastorError(
            f"{stage}: every prompt is longer than max_prompt_tokens {max_prompt_tokens} "
            f"(the shortest has {min(len(prompt.ids) for prompt in tokenised)}): raise it, within the model's context"
        )
    return kept


def check_context(stage: str, model: str, prompt_tokens: int, new_tokens: int) -> None:
    """Raise CastorError when prompt and response together do not fit the model's context."""
    limit = context_length(model)
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise CastorError(
            f"{stage}: max_prompt_tokens {prompt_tokens} + max_new_tokens {new_tokens} exceed the context of {limit} "
            f"tokens of {model}: lower one of them"
        )
