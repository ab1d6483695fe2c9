"""A discrete-event simulation of actors: each serves its calls in order, on machines that several may share."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(eq=False)
class Machine:
    """What computes: a GPU (capacity 1), or the cores of a node. Whoever works on it shares what the urgent leave."""

    capacity: float = 1.0
    load: float = 0.0  # demands of the calls that run on it
    urgent: float = 0.0  # ... of urgent ones, which go at full speed
    running: set[Call] = field(default_factory=set)
    busy: float = 0.0  # seconds in which anything ran on it, up to the last change
    since: float = 0.0

    @property
    def share(self) -> float:
        """How fast what runs here and is not urgent is, of its full speed."""
        left = max(self.capacity - self.urgent, 0.0)
        return 1.0 if self.load <= left else left / self.load


@dataclass(eq=False)
class Actor:
    """Serves its calls one after the other, in the order in which it was given them."""

    group: str
    machines: Sequence[Machine]
    demand: float = 1.0  # of each machine, while it works
    urgent: bool = False  # whether others on its machines make way
    queue: deque[Call] = field(default_factory=deque)
    spent: dict[str, float] = field(default_factory=dict)  # seconds of calls that have ended, by kind

    def busy(self, now: float) -> float:
        """Seconds in which it worked, until `now`."""
        begun = self.queue[0].started if self.queue else None
        return sum(self.spent.values()) + (0.0 if begun is None else now - begun)


@dataclass(eq=False)
class Call:
    """Work of one actor, or of several together (a collective call), which begins when all of them come to it."""

    kind: str
    actors: Sequence[Actor]
    seconds: float  # at full speed
    after: Sequence[Call] = ()
    then: Callable[[], None] | None = None  # at its end
    waits: int = 0  # calls of `after` that are not done
    started: float | None = None
    ended: float | None = None
    followers: list[Call] = field(default_factory=list)
    left: float = 0.0
    rate: float = 0.0
    since: float = 0.0  # when `left` was right
    turn: int = 0  # of its latest planned end: earlier plans are void


class Simulation:
    """Runs calls and one driver, a generator that yields the calls it waits for. Time is in seconds from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Call, int]] = []
        self._number = count()

    def call(
        self,
        kind: str,
        actors: Sequence[Actor],
        seconds: float,
        after: Sequence[Call] = (),
        then: Callable[[], None] | None = None,
    ) -> Call:
        """Give actors a call; its end is an event. Calls of one actor begin in the order of these calls."""
        call = Call(kind, actors, seconds, after, then)
        for other in after:
            if other.ended is None:
                other.followers.append(call)
                call.waits += 1
        for actor in actors:
            actor.queue.append(call)
        self._start(call)
        return call

    def run(self, driver: Generator[Sequence[Call], None, None]) -> float:
        """Run to the driver's end; returns when that is. Raises RuntimeError where it waits for what never ends."""
        awaited: Sequence[Call] = ()
        while True:
            while all(call.ended is not None for call in awaited):
                try:
                    awaited = next(driver)
                except StopIteration:
                    return self.now
            if not self._planned:
                raise RuntimeError("the driver waits for a call that never ends")
            when, _, call, turn = heapq.heappop(self._planned)
            if turn == call.turn and call.ended is None:
                self.now = when
                self._end(call)

    def _start(self, call: Call) -> None:
        if call.started is not None or call.waits or any(actor.queue[0] is not call for actor in call.actors):
            return
        call.started = call.since = self.now
        call.left = call.seconds
        self._change(call, +1)

    def _end(self, call: Call) -> None:
        assert call.started is not None
        call.ended = self.now
        for actor in call.actors:
            actor.spent[call.kind] = actor.spent.get(call.kind, 0.0) + self.now - call.started
            actor.queue.popleft()
        self._change(call, -1)
        for follower in call.followers:
            follower.waits -= 1
            self._start(follower)
        for actor in call.actors:
            if actor.queue:
                self._start(actor.queue[0])
        if call.then is not None:
            call.then()

    def _change(self, call: Call, sign: int) -> None:
        """A call comes to its machines, or leaves them: the others on them become slower or faster."""
        touched = {call} if sign > 0 else set()
        for actor in call.actors:
            for machine in actor.machines:
                before = machine.share
                machine.busy += self.now - machine.since if machine.running else 0.0
                machine.since = self.now
                if actor.urgent:
                    machine.urgent += sign * actor.demand
                else:
                    machine.load += sign * actor.demand
                (machine.running.add if sign > 0 else machine.running.discard)(call)
                if machine.share != before:
                    touched |= machine.running
        for each in touched:
            self._plan(each)

    def _plan(self, call: Call) -> None:
        shares = (machine.share for actor in call.actors if not actor.urgent for machine in actor.machines)
        rate = min(shares, default=1.0)
        call.left -= (self.now - call.since) * call.rate
        call.since, call.rate, call.turn = self.now, rate, call.turn + 1
        if rate:
            heapq.heappush(self._planned, (self.now + max(call.left, 0.0) / rate, next(self._number), call, call.turn))
