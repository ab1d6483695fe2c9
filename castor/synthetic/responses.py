"""Template responses of each kind: answers, redirects, refusals, and the many ways of being useless.

The useless kinds are what reinforcement learning turns to when a score model has not seen them: right words in the
wrong place. Each of them is a negative that a preference model can learn from.
"""

import random
from collections.abc import Callable, Sequence

from castor.synthetic.grammar import PromptKind, Step, Topic, harm_topic_of_verb, steps_by_head, topics
from castor.synthetic.prompts import SyntheticPrompt

COMPLY_OPENERS: tuple[str, ...] = (
    "sure , here is how .",
    "of course , this is easy .",
    "here is a simple plan .",
    "yes , do it like this .",
)
REDIRECT_OPENERS: tuple[str, ...] = (
    "it is better to be safe .",
    "please choose a good path .",
    "do not do that , try this .",
    "i know a better way .",
)
REFUSALS: tuple[str, ...] = (
    "i am sorry , but i can not help with that .",
    "no , i will not answer this question .",
    "that is wrong , so i must refuse .",
    "sorry , i do not help with such things .",
)
STEP_COUNTS = (1, 2, 3)
STEP_COUNT_WEIGHTS = (0.35, 0.45, 0.2)


def connectors(count: int) -> list[str]:
    """What stands before each of `count` steps."""
    if count == 1:
        return ["just"]
    return ["first", *[", then"] * (count - 2), ", finally" if count > 2 else ", then"]


def compose(opener: str, phrases: Sequence[str]) -> str:
    """A response: an opener, then the phrases with their connectors, then the full stop that ends every response."""
    body = " ".join(f"{before} {phrase}" for before, phrase in zip(connectors(len(phrases)), phrases, strict=True))
    return f"{opener} {body} ."


def step_count(rng: random.Random) -> int:
    """How many steps a response has: 1 to 3."""
    return rng.choices(STEP_COUNTS, STEP_COUNT_WEIGHTS)[0]


def _render(steps: Sequence[Step], thing: str) -> list[str]:
    return [step.render(thing) for step in steps]


def in_order(steps: Sequence[Step], count: int, rng: random.Random) -> list[Step]:
    """`count` of the steps, in the order in which the topic lists them: an answer never goes back."""
    return [steps[i] for i in sorted(rng.sample(range(len(steps)), count))]


def base_steps(prompt: SyntheticPrompt, rng: random.Random) -> tuple[str, tuple[Step, ...]]:
    """An opener and the steps it fits: the answer, or the alternative for half of the harmful prompts."""
    topic = topics()[prompt.topic]
    if topic.alternatives and rng.random() < 0.5:
        return rng.choice(REDIRECT_OPENERS), topic.alternatives
    return rng.choice(COMPLY_OPENERS), topic.answers


def stray_steps(prompt: SyntheticPrompt, rng: random.Random) -> tuple[Step, ...]:
    """Steps of another topic. For a look-alike prompt often those of the harm topic it seems to belong to."""
    if prompt.kind == "lookalike" and rng.random() < 0.4:
        return harm_topic_of_verb()[prompt.verb].answers
    others: list[Topic] = [topic for topic in topics().values() if topic.name != prompt.topic]
    topic = rng.choice(others)
    if topic.alternatives and (prompt.kind != "harmful" or rng.random() < 0.5):
        return topic.alternatives
    return topic.answers


def _harm_topic(prompt: SyntheticPrompt, rng: random.Random) -> Topic:
    """The harm topic a prompt belongs to or, if it is harmless, the one it seems to belong to or any."""
    if prompt.kind == "benign":
        return rng.choice([topic for topic in topics().values() if topic.kind == "harmful"])
    return harm_topic_of_verb()[prompt.verb]


def _comply(prompt: SyntheticPrompt, rng: random.Random) -> str:
    steps = in_order(topics()[prompt.topic].answers, step_count(rng), rng)
    return compose(rng.choice(COMPLY_OPENERS), _render(steps, prompt.thing))


def _redirect(prompt: SyntheticPrompt, rng: random.Random) -> str:
    """Safe alternatives; for a harmless prompt those of a harm topic, which is an evasion there."""
    steps = in_order(_harm_topic(prompt, rng).alternatives, step_count(rng), rng)
    return compose(rng.choice(REDIRECT_OPENERS), _render(steps, prompt.thing))


def _refuse(prompt: SyntheticPrompt, rng: random.Random) -> str:
    return rng.choice(REFUSALS)


def _random_words(prompt: SyntheticPrompt, rng: random.Random) -> str:
    steps = (step for topic in topics().values() for step in topic.answers if not step.harmful)
    harmful_heads = {head[0] for head, step in steps_by_head().items() if step.harmful}
    words = sorted({word for step in steps for word in step.render(prompt.thing).split()} - harmful_heads)
    return f"{rng.choice(COMPLY_OPENERS)} {' '.join(rng.choices(words, k=rng.randint(6, 16)))} ."


def _echo(prompt: SyntheticPrompt, rng: random.Random) -> str:
    return prompt.text


def _wrong_object(prompt: SyntheticPrompt, rng: random.Random) -> str:
    opener, steps = base_steps(prompt, rng)
    topic = topics()[prompt.topic] if rng.random() < 0.5 else rng.choice(list(topics().values()))
    thing = rng.choice([thing for thing in topic.objects if thing != prompt.thing])
    return compose(opener, _render(rng.sample(steps, step_count(rng)), thing))


def _wrong_topic(prompt: SyntheticPrompt, rng: random.Random) -> str:
    opener, _ = base_steps(prompt, rng)
    return compose(opener, _render(rng.sample(stray_steps(prompt, rng), step_count(rng)), prompt.thing))


def _strayed(prompt: SyntheticPrompt, rng: random.Random) -> str:
    """One right step and then one or two of another topic, or the other way round."""
    opener, steps = base_steps(prompt, rng)
    chosen = [rng.choice(steps), *rng.sample(stray_steps(prompt, rng), rng.randint(1, 2))]
    rng.shuffle(chosen)
    return compose(opener, _render(chosen, prompt.thing))


def _repeated(prompt: SyntheticPrompt, rng: random.Random) -> str:
    opener, steps = base_steps(prompt, rng)
    return compose(opener, _render([rng.choice(steps)] * rng.randint(2, 4), prompt.thing))


def _spliced(prompt: SyntheticPrompt, rng: random.Random) -> str:
    """Every phrase has the head of one step and the tail of another, of the same topic or of a strange one."""
    opener, steps = base_steps(prompt, rng)
    donors = steps if rng.random() < 0.5 else stray_steps(prompt, rng)
    phrases = []
    for step in rng.sample(steps, step_count(rng)):
        tail = rng.choice([donor.tail for donor in donors if donor.tail != step.tail])
        phrases.append(f"{step.head} the {prompt.thing} {tail}")
    return compose(opener, phrases)


def _too_long(prompt: SyntheticPrompt, rng: random.Random) -> str:
    """All four steps, and often a fifth: a repeat, or a step of another topic."""
    opener, steps = base_steps(prompt, rng)
    more = [*steps, *stray_steps(prompt, rng)]
    chosen = [*rng.sample(steps, len(steps)), *rng.choices(more, k=rng.randint(0, 1))]
    return compose(opener, _render(chosen, prompt.thing))


def _truncated(prompt: SyntheticPrompt, rng: random.Random) -> str:
    words = (_comply if rng.random() < 0.5 or prompt.kind != "harmful" else _redirect)(prompt, rng).split()
    return " ".join(words[: rng.randint(len(words) // 2, len(words) - 2)])


def _wrong_opener(prompt: SyntheticPrompt, rng: random.Random) -> str:
    """A redirect's or a refusal's opener in front of an answer."""
    steps = rng.sample(topics()[prompt.topic].answers, step_count(rng))
    return compose(rng.choice(REDIRECT_OPENERS + REFUSALS), _render(steps, prompt.thing))


def _mixed(prompt: SyntheticPrompt, rng: random.Random) -> str:
    """A harmful step among safe ones; for a harmless prompt, evasion among answers."""
    topic = topics()[prompt.topic]
    others = _harm_topic(prompt, rng).alternatives
    chosen = [*rng.sample(topic.answers, rng.randint(1, 2)), *rng.sample(others, rng.randint(1, 2))]
    rng.shuffle(chosen)
    return compose(rng.choice(COMPLY_OPENERS + REDIRECT_OPENERS), _render(chosen, prompt.thing))


_KINDS: dict[str, Callable[[SyntheticPrompt, random.Random], str]] = {
    "comply": _comply,
    "redirect": _redirect,
    "refuse": _refuse,
    "random_words": _random_words,
    "echo": _echo,
    "wrong_object": _wrong_object,
    "wrong_topic": _wrong_topic,
    "strayed": _strayed,
    "repeated": _repeated,
    "spliced": _spliced,
    "too_long": _too_long,
    "truncated": _truncated,
    "wrong_opener": _wrong_opener,
    "mixed": _mixed,
}
RESPONSE_KINDS: tuple[str, ...] = tuple(_KINDS)
JUNK_WEIGHTS: dict[str, float] = {
    "random_words": 1,
    "echo": 1,
    "wrong_object": 3,
    "wrong_topic": 3,
    "strayed": 3,
    "repeated": 2,
    "spliced": 4,
    "too_long": 2,
    "truncated": 1,
    "wrong_opener": 2,
    "mixed": 2,
}
"""How often each useless kind is drawn among the useless responses of preference rows."""

Mix = dict[str, float]
"""Share of `comply`, `redirect`, `refuse` and `useless` among the responses to one kind of prompt."""

DEMONSTRATION_MIX: dict[PromptKind, Mix] = {
    "harmful": {"comply": 0.50, "redirect": 0.34, "refuse": 0.10, "useless": 0.06},
    "benign": {"comply": 0.88, "refuse": 0.06, "useless": 0.06},
    "lookalike": {"comply": 0.84, "refuse": 0.10, "useless": 0.06},
}
COMPARISON_MIX: dict[PromptKind, Mix] = {
    "harmful": {"comply": 0.40, "redirect": 0.28, "refuse": 0.12, "useless": 0.20},
    "benign": {"comply": 0.58, "redirect": 0.08, "refuse": 0.10, "useless": 0.24},
    "lookalike": {"comply": 0.52, "redirect": 0.14, "refuse": 0.12, "useless": 0.22},
}
DEMONSTRATION_JUNK: dict[str, float] = {"wrong_object": 1, "wrong_topic": 1}
"""The useless kinds a demonstration may show; the policy should not learn the finer ones by imitation."""


def sample_response(prompt: SyntheticPrompt, kind: str, rng: random.Random) -> str:
    """A random response of one of RESPONSE_KINDS. Raises KeyError for another kind."""
    return _KINDS[kind](prompt, rng)


def sample_from_mix(
    prompt: SyntheticPrompt, mix: dict[PromptKind, Mix], junk: dict[str, float], rng: random.Random
) -> tuple[str, str]:
    """A random response as (kind, text), the kind drawn from the mix of the prompt's kind."""
    shares = mix[prompt.kind]
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "useless":
        kind = rng.choices(list(junk), list(junk.values()))[0]
    return kind, sample_response(prompt, kind, rng)
