"""Prompts that fit a model's context."""

from __future__ import annotations

from castor.config.rollout import Rollout
from castor.data.tokens.prompt_stream import Prompt
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.io.errors import CastorError
from castor.io.files import write_jsonl
from castor.model_reference import ModelReference
from castor.models.policy import context_length
from trainers.stage_run import StageRun


def fitting_prompts(run: StageRun, prompts: list[str], policy: ModelReference, rollout: Rollout) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens, with their ids; longer ones are dropped, counted and listed.

    Raises CastorError when none is left, and when prompt and response together do not fit the policy's context.
    """
    _check_context(run.name, policy, rollout)
    longest, template = rollout.max_prompt_tokens, PromptTemplate(load_tokenizer(policy), run.template)
    tokenised = template.tokenised(prompts)
    kept = [prompt for prompt in tokenised if len(prompt.ids) <= longest]
    long = [(prompt.text, len(prompt.ids)) for prompt in tokenised if len(prompt.ids) > longest]
    run.rows.count(too_long=len(long))
    if long:
        path = run.files.long_prompts
        write_jsonl(path, ({"reason": "prompt too long", "tokens": n, "prompt": p} for p, n in long))
        run.terminal.line(f"  dropped {len(long):,} prompts of more than {longest} tokens (see {path})")
    if not kept:
        raise CastorError(
            f"{run.name}: every prompt is longer than max_prompt_tokens {longest} "
            f"(the shortest has {min(len(prompt.ids) for prompt in tokenised)}): raise it, within the model's context"
        )
    return kept


def _check_context(stage: str, policy: ModelReference, rollout: Rollout) -> None:
    limit = context_length(policy)
    if limit is not None and rollout.max_prompt_tokens + rollout.max_new_tokens > limit:
        raise CastorError(
            f"{stage}: max_prompt_tokens {rollout.max_prompt_tokens} + max_new_tokens {rollout.max_new_tokens} exceed "
            f"the context of {limit} tokens of {policy}: lower one of them"
        )
