"""The simulated annotator: noisy PKU-SafeRLHF rows from the gold judge's utilities."""

import hashlib
import random
from dataclasses import dataclass

from castor.config.data import SyntheticOptions
from castor.synthetic.judge import Verdict, judge
from castor.synthetic.prompts import parse_prompt
from castor.taxonomy import PKU_CATEGORIES, Severity

REFUSAL_COST = -0.6
USEFUL = 0.4
"""Gold helpfulness from which a harmless response counts as an answer rather than as junk; one clean step has 0.45."""


def cost_utility(verdict: Verdict) -> float:
    """How bad a response is for safety, higher is worse: harmful > junk > refusal > useful and harmless.

    Harmless responses are ranked by their use because equal costs would make junk as cheap as a good redirect.
    """
    if verdict.harmful:
        return 1.0 + verdict.severity + 0.5 * verdict.harm_steps
    if verdict.refusal:
        return REFUSAL_COST
    return -1.0 - verdict.helpfulness if verdict.helpfulness >= USEFUL else -verdict.helpfulness


@dataclass(frozen=True)
class SafetyLabel:
    """What an annotator says about one response; safe goes with no category and severity NONE, and only with them."""

    safe: bool
    categories: frozenset[str]
    severity: Severity


def label_safety(prompt: str, verdict: Verdict, rng: random.Random, safety_noise: float) -> SafetyLabel:
    """The safety label of a response, wrong with probability `safety_noise`; a wrong label is wrong in every part.

    A harmless response taken for a harmful one gets the prompt's category and severity, or any category and MINOR.
    """
    flipped = rng.random() < safety_noise
    if verdict.harmful != flipped:
        if verdict.harmful:
            return SafetyLabel(False, verdict.categories, verdict.severity)
        asked = parse_prompt(prompt)
        category = asked.category or rng.choice(PKU_CATEGORIES)
        return SafetyLabel(False, frozenset({category}), asked.severity or Severity.MINOR)
    return SafetyLabel(True, frozenset(), Severity.NONE)


def _higher(utility_0: float, utility_1: float, rng: random.Random, label_noise: float) -> int:
    """Index of the higher utility; a coin decides ties, and the label is wrong with probability `label_noise`."""
    coin, flipped = rng.randrange(2), rng.random() < label_noise
    winner = coin if utility_0 == utility_1 else int(utility_1 > utility_0)
    return 1 - winner if flipped else winner


def annotate_pair(
    prompt: str,
    response_0: str,
    response_1: str,
    rng: random.Random,
    options: SyntheticOptions,
    response_source: str = "policy",
) -> dict:
    """One PKU-SafeRLHF row, keys in that data set's order; no row contradicts itself.

    `better_response_id` follows gold helpfulness. `safer_response_id` follows the safety flags where they differ (a
    safe response ranks above an unsafe one, also when noise made the flag) and `cost_utility` where they agree.
    Categories and severity always agree with the flag. SyntheticOptions describes the noise. The digests are of prompt
    and response together.

    Raises:
        CastorError: the prompt is not one of the synthetic corpus.
    """
    parse_prompt(prompt)
    responses = (response_0, response_1)
    verdicts = [judge(prompt, response) for response in responses]
    labels = [label_safety(prompt, verdict, rng, options.safety_noise) for verdict in verdicts]
    better = _higher(verdicts[0].helpfulness, verdicts[1].helpfulness, rng, options.label_noise)
    safer = _higher(-cost_utility(verdicts[0]), -cost_utility(verdicts[1]), rng, options.label_noise)
    if labels[0].safe != labels[1].safe:
        safer = int(labels[1].safe)
    mappings = [{category: category in label.categories for category in PKU_CATEGORIES} for label in labels]
    digests = [hashlib.sha256((prompt + response).encode()).hexdigest() for response in responses]
    return {
        "prompt": prompt,
        "response_0": response_0,
        "response_1": response_1,
        "prompt_source": "synthetic",
        "response_0_source": response_source,
        "response_1_source": response_source,
        "is_response_0_safe": labels[0].safe,
        "is_response_1_safe": labels[1].safe,
        "response_0_harm_category": mappings[0],
        "response_1_harm_category": mappings[1],
        "response_0_severity_level": int(labels[0].severity),
        "response_1_severity_level": int(labels[1].severity),
        "better_response_id": better,
        "safer_response_id": safer,
        "response_0_sha256": digests[0],
        "response_1_sha256": digests[1],
    }
