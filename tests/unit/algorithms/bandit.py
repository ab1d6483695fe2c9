"""A constrained bandit with a softmax policy, exact expected gradients, and an optimum in closed form."""

import math

import torch

from castor.algorithms.advantages import combine
from castor.algorithms.constraints import Limit, policy_costs
from castor.algorithms.multipliers import initial_state, update, violated

BETA = 0.5  # weight of the KL to the uniform reference
REWARDS = torch.tensor([0.0, 1.0], dtype=torch.float64)
COSTS = torch.tensor([-1.0, 1.0], dtype=torch.float64)  # arm 1 is the helpful and the unsafe one
LIMIT = -0.4  # on E[C] = 2p - 1, so the constrained optimum plays arm 1 with p = 0.3
OPTIMAL_SHARE = 0.3


def logit(p):
    return math.log(p / (1 - p))


def optimal_multiplier(*, plain):
    """λ at which the maximiser of the combined objective, minus β KL, plays arm 1 with `OPTIMAL_SHARE`.

    Its log-odds are (ΔR - λ ΔC) / β when plain, and (ΔR - λ ΔC) / ((1 + λ) β) when normalized; ΔR = 1, ΔC = 2.
    """
    odds = logit(OPTIMAL_SHARE) * BETA
    return (1.0 - odds) / 2.0 if plain else (1.0 - odds) / (2.0 + odds)


def share_at(multiplier, *, plain, delta_cost=2.0):
    """Share of arm 1 of the maximiser under a price."""
    scale = BETA if plain else (1.0 + multiplier) * BETA
    return 1.0 / (1.0 + math.exp(-(1.0 - multiplier * delta_cost) / scale))


def play(rules, *, rewards=REWARDS, costs=None, limits=None, plain=False, steps=3000, rate=1.0):
    """Train from the uniform policy; returns probabilities [steps, K] before each policy step, and λ per constraint.

    One step is the loop's: the multipliers see the policy's expected cost, then the policy takes one exact gradient.
    """
    costs, limits = costs or {"harm": COSTS}, limits or {"harm": LIMIT}
    logits = torch.zeros_like(rewards)
    states = {name: initial_state(rule) for name, rule in rules.items()}
    policies, prices = [], []
    for _ in range(steps):
        policy = torch.softmax(logits, 0)
        for name, rule in rules.items():
            # rectified needs the distribution of costs: a window in proportion to the policy's probabilities
            window = _window(policy, costs[name]) if rule.rule == "rectified" else [float(policy @ costs[name])]
            states[name] = update(states[name], window, Limit(limits[name]), rule)
        values = {name: state.value for name, state in states.items()}
        turn = violated(
            {name: state.violation for name, state in states.items() if state.rule == "crpo"},
            {name: rule.tolerance for name, rule in rules.items()},
        )
        values |= {turn: 1.0} if turn else {}
        penalty = BETA * (policy.log() + math.log(len(rewards)))
        advantage = combine(
            {"reward": rewards - penalty},
            {"reward": 1.0},
            {
                name: _stream(costs[name], limits[name], rule) + (0.0 if plain else penalty)
                for name, rule in rules.items()
            },
            values,
            objective_share=0.0 if turn else 1.0,
            plain=plain,
        )
        policies.append(policy)
        prices.append(values)
        logits = logits + rate * policy * (advantage - policy @ advantage)
    return torch.stack(policies), {name: torch.tensor([p[name] for p in prices], dtype=torch.float64) for name in rules}


def _stream(costs, limit, rule):
    above = limit if rule.rule == "rectified" else None
    return policy_costs(costs, policy_cost="score", rectified_above=above)


def _window(policy, costs, size=1000):
    unsafe = round(float(policy[1]) * size)
    return [float(costs[1])] * unsafe + [float(costs[0])] * (size - unsafe)
