"""Which actors of a stage belong on one node, and which share a GPU: the bundles of its placement group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from castor.io.errors import CastorError
from castor.run.actors import Actors

_EDGE = 1e-6  # fractions of a GPU add up in binary


@dataclass(frozen=True)
class Bundle:
    """What one node gives together. The only GPU of a bundle may be shared; of several, each belongs to one member."""

    gpus: int
    cpus: float
    custom: Mapping[str, float]
    members: tuple[str, ...]  # names of actors, as `Actors.rank_names` gives them

    @property
    def resources(self) -> dict[str, float]:
        """As Ray wants them."""
        amounts = {"GPU": float(self.gpus), "CPU": self.cpus, **self.custom}
        return {name: amount for name, amount in amounts.items() if amount}

    def __str__(self) -> str:
        return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} of one node for {', '.join(self.members)}"


def make_bundles(actors: Sequence[Actors], gpus_per_node: int) -> list[Bundle]:
    """The bundles of a stage's actors on GPUs; an actor without one is in none, and Ray places it where it likes.

    Ranks that train together are in one bundle, so that what they send each other stays on a node; where a node has too
    few GPUs for them, in as many bundles as it takes. An actor that takes a share of a GPU joins the fullest one with
    room for it, but never another rank of its own training group, as NCCL refuses two ranks on one GPU. Groups that
    take turns are spread instead: no two of a group on one GPU, as both would have the same turn.
    """
    whole: list[_Draft] = []
    shared: list[_Draft] = []
    for each in actors:
        gpus = each.resources.gpus if each.resources else 0
        if gpus >= 1:
            count = max(1, gpus_per_node // round(gpus)) if each.trains_together else 1
            whole += [_Draft(each, names) for names in _cut(each.rank_names, count)]
        elif gpus:
            for name in each.rank_names:
                _share(shared, each, name, gpus)
    return [draft.bundle() for draft in (*whole, *shared)]


def place(bundles: Sequence[Bundle], nodes: Sequence[int]) -> list[int | None]:
    """The node of each bundle, on nodes with the given numbers of GPUs; None: no node has so many left.

    The largest go first, each to the first node with room, so that small ones do not break up what a large one needs.
    """
    free, found = list(nodes), dict[int, int]()
    for index in sorted(range(len(bundles)), key=lambda index: -bundles[index].gpus):
        node = next((node for node, gpus in enumerate(free) if gpus >= bundles[index].gpus), None)
        if node is not None:
            found[index] = node
            free[node] -= bundles[index].gpus
    return [found.get(index) for index in range(len(bundles))]


def require_room(bundles: Sequence[Bundle], stage: str, nodes: Sequence[int]) -> None:
    """Raise CastorError when nodes with these numbers of GPUs cannot hold the bundles of a stage."""
    homeless = [bundle for bundle, node in zip(bundles, place(bundles, nodes), strict=True) if node is None]
    if homeless:
        gpus = sum(bundle.gpus for bundle in bundles)
        offered = "+".join(str(node) for node in nodes if node) or "0"
        raise CastorError(
            f"{stage} asks for {gpus} GPUs, and of {offered} none are left for {homeless[0]}: lower ranks, workers or "
            "gpus, or set ray.hardware to what the cluster has"
        )


@dataclass
class _Draft:
    """A bundle in the making."""

    first: Actors
    names: list[str]
    groups: list[Actors] = field(default_factory=list)  # of the members, one for each
    taken: float = 0.0  # of the only GPU, where it is shared

    def __post_init__(self) -> None:
        self.groups = self.groups or [self.first] * len(self.names)

    def bundle(self) -> Bundle:
        asked = [each.resources for each in self.groups if each.resources is not None]
        custom: dict[str, float] = {}
        for resources in asked:
            for name, amount in resources.custom.items():
                custom[name] = custom.get(name, 0) + amount
        gpus = 1 if self.taken else round(sum(resources.gpus for resources in asked))
        return Bundle(gpus, sum(resources.cpus for resources in asked), custom, tuple(self.names))


def _cut(names: list[str], count: int) -> Iterator[list[str]]:
    for start in range(0, len(names), count):
        yield names[start : start + count]


def _share(shared: list[_Draft], each: Actors, name: str, gpus: float) -> None:
    """Put one actor onto a shared GPU."""
    open_to_it = [
        draft
        for draft in shared
        if draft.taken + gpus < 1 + _EDGE and not (each in draft.groups and (each.trains_together or each.take_turns))
    ]
    if open_to_it:
        choose = min if each.take_turns else max
        draft = choose(open_to_it, key=lambda draft: draft.taken)
        draft.names.append(name)
        draft.groups.append(each)
    else:
        draft = _Draft(each, [name])
        shared.append(draft)
    draft.taken += gpus
