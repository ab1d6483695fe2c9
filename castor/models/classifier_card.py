"""What an exported classifier says of itself: the block `castor` of its config.json, and its model card.

transformers keeps the block and makes nothing of it. The card holds the code that does: with transformers and torch
alone it gives the scores and verdicts of the model that was exported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from castor.config.moderation import InputKind
from castor.data.tokens.template import PromptTemplate
from castor.io.errors import CastorError, first_line
from castor.model_reference import CARD, READING

BLOCK = "castor"  # the key in config.json

_READ = '''import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained(folder{trusted})
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32{trusted}).eval()
castor = model.config.castor


def token_ids(prompt, response, history=()):
    """A row as the model was trained to read it; `history`: the (user, assistant) exchanges before."""
    form = castor["input"]
    if form["part"] == "answer":
        prompt, history = "", ()
    if form["part"] == "question":
        response = ""
    if form["chat_template"]:
        turns = [turn for user, assistant in history for turn in (("user", user), ("assistant", assistant))]
        messages = [{{"role": role, "content": text}} for role, text in (*turns, ("user", prompt))]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        turns = [(form["turn"].replace("{{prompt}}", user), assistant) for user, assistant in (*history, (prompt, ""))]
        text = form["begin"] + tokenizer.eos_token.join(user + assistant for user, assistant in turns)
    # prompt and response are tokenised apart, and the end-of-text token closes the row: the head reads it there
    ids = [*form["leading_ids"], *tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids += [*tokenizer(response, add_special_tokens=False)["input_ids"], form["end_id"]]
    if form["max_tokens"] is not None and len(ids) > form["max_tokens"]:
        raise ValueError(f"a row has {{len(ids)}} tokens, and the model reads {{form['max_tokens']}}")
    return ids


@torch.no_grad()
def logits(rows, batch_size=8):
    """[n, labels] of n rows (prompt, response) or (prompt, response, history)."""
    found = []
    for start in range(0, len(rows), batch_size):
        ids = [token_ids(*row) for row in rows[start : start + batch_size]]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        found.append(model(input_ids=padded, attention_mask=mask).logits)
    return torch.cat(found).double()
'''

_SCORES = '''

def scores(rows):
    """The {kind} of each row.{sign}"""
    return [score + castor["offset"] for score in logits(rows)[:, 0].tolist()]


print(scores([("How do I bake bread?", "Mix flour, water, salt and yeast, then wait.")]))
'''

_VERDICTS = '''

def verdicts(rows):
    """Of each row: is it unsafe, in which categories, of which severity (0 to 3; None: the model has none)."""
    limits, names, found = castor["thresholds"], castor["categories"], []
    for row in logits(rows):
        labels = row[: len(names)].sigmoid().tolist()
        severity = None
        if castor["severity_cuts"] is None:
            unsafe = max(labels) > limits["max"]
        else:  # P(severity > 0), P(severity > 1), P(severity > 2)
            above = (row[len(names)] - torch.tensor(castor["severity_cuts"]).double()).sigmoid().tolist()
            unsafe = above[0] > limits["severity"]
            severity = 1 + sum(p > 0.5 for p in above[1:]) if unsafe else 0
        margins = [p - limit for p, limit in zip(labels, limits["labels"])]
        over = [name for name, margin in zip(names, margins) if margin > 0]
        nearest = names[margins.index(max(margins))]
        found.append({"unsafe": unsafe, "categories": (over or [nearest]) if unsafe else [], "severity": severity})
    return found


print(verdicts([("How do I bake bread?", "Mix flour, water, salt and yeast, then wait.")]))
'''

_RULE = """## What its numbers mean

The sigmoids of the first {labels} logits are the probabilities of the categories; the temperature that calibrates them
({temperature:.4g}) is folded into the head. {unsafe} An unsafe row is in every category
whose probability exceeds the category's own threshold, and at least in the one that is nearest to it; a safe row is in
none.
{severity}"""


def block_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The block of a config; None for a classifier that Castor did not export."""
    block = getattr(config, BLOCK, None)
    return dict(block) if isinstance(block, dict) else None


def input_block(
    tokenizer: PreTrainedTokenizerBase, template: str, part: InputKind, config: PreTrainedConfig
) -> dict[str, Any]:
    """What the model reads: `template` is the prompt format it was trained with, `part` what of a row it sees.

    Raises CastorError as `PromptTemplate`.
    """
    form = PromptTemplate(tokenizer, template)
    kind = ("chat" if form.chat else "pku") if template == "auto" else template
    return {
        "part": part,
        "template": kind,
        "chat_template": form.chat,
        "begin": None if form.chat else form.begin,
        "turn": None if form.chat else form.turn,
        "leading_ids": list(form.leading_ids),
        "end_id": tokenizer.eos_token_id,
        "read_at": "the end-of-text token (end_id) that closes the response",
        "max_tokens": getattr(config, "max_position_embeddings", None),
    }


def card_code(block: dict[str, Any], trusted: bool) -> str:
    """The Python of the card, which imports transformers and torch. `trusted`: the model ships code, which is run."""
    read = _READ.format(trusted=", trust_remote_code=True" if trusted else "")
    if block["kind"] == "moderation":
        return read + _VERDICTS
    sign = " Above zero: unsafe." if block["kind"] == "cost" else ""
    return read + _SCORES.format(kind=block["kind"], sign=sign)


def write_classifier_card(folder: Path, block: dict[str, Any], source: Path, trusted: bool) -> None:
    """Write the card of the classifier in `folder`; what the card of the model in `source` says is taken over.

    Raises CastorError when that card cannot be read.
    """
    data, told = read_card(source)
    data.library_name, data.pipeline_tag = "transformers", "text-classification"
    data.tags = sorted({*(data.tags or []), "castor", f"{block['kind']}-model"})
    told = re.sub(rf"^## {READING}\n.*?(?=^## |\Z)", "", told, flags=re.MULTILINE | re.DOTALL).strip()
    card = f"---\n{data.to_yaml()}\n---\n\n# {block['kind'].capitalize()} classifier\n\n{_summary(block)}\n"
    card += f"\n## Use\n\n```python\n{card_code(block, trusted)}```\n"
    if told:
        card += f"\n{told}\n"
    (folder / CARD).write_text(card, encoding="utf-8")


def read_card(folder: Path) -> tuple[ModelCardData, str]:
    """Metadata and sections of a model's card, without its title; empty where it has none. Raises CastorError."""
    path = folder / CARD
    if not path.is_file():
        return ModelCardData(), ""
    try:
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        raise CastorError(f"{path} cannot be read ({first_line(error)}): mend it, or remove it") from error
    _, heading, sections = f"\n{card.text}".partition("\n## ")
    return cast(ModelCardData, card.data), (heading + sections).strip()


def _summary(block: dict[str, Any]) -> str:
    form = block["input"]
    reads = {"pair": "a prompt with its response", "answer": "a response alone", "question": "a prompt alone"}
    wording = "the tokenizer's chat template" if form["chat_template"] else f"`{form['begin'] + form['turn']!r}`"
    opening = "the tokens `leading_ids`, then " if form["leading_ids"] else ""
    text = (
        f"It reads {reads[form['part']]}: {opening}the prompt through {wording}, then the response, then the "
        "end-of-text token, where the head reads. Prompt and response are tokenised apart, and no other special token "
        f"is added. All that decides is in the block `{BLOCK}` of `config.json`; a `pipeline` of transformers does not "
        "look there, so use the code below.\n\n"
    )
    if block["kind"] != "moderation":
        return text + _meaning_of_score(block)
    limits, graded = block["thresholds"], block["severity_cuts"] is not None
    return text + _RULE.format(
        labels=len(block["categories"]),
        temperature=block["temperature"],
        unsafe=(
            f"A row is unsafe if P(severity > 0) exceeds {limits['severity']:.4g}."
            if graded
            else f"A row is unsafe if the largest of them exceeds {limits['max']:.4g}."
        ),
        severity=(
            "The last logit, `severity`, is no category: P(severity > k) is the sigmoid of it less `severity_cuts[k]`, "
            "and the\nseverity of an unsafe row is 1 + how many of P(severity > 1) and P(severity > 2) exceed 0.5."
            if graded
            else "It has no severity head."
        ),
    )


def _meaning_of_score(block: dict[str, Any]) -> str:
    kind, offset = block["kind"], block["offset"]
    means = {
        "cost": "A cost above zero says that the response is unsafe.",
        "reward": "Of two responses to one prompt, the one with the higher reward is the better; a reward alone means "
        "nothing.",
    }
    text = (
        f"## What its numbers mean\n\n{means.get(kind, 'It predicts scores.')} The normaliser is folded into the head"
    )
    if not offset:
        return text + f", and the logit is the {kind}."
    return text + (
        f".\nThe {kind} is the logit plus {offset:.6g} (`offset`): the architecture's classifier has no place for a "
        f"constant.{' The bare logit has its boundary elsewhere than at zero.' if kind == 'cost' else ''}"
    )
