"""The queue in front of the policies: who is let through next, and who is sent away."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, get_args

from serve.gateway.errors import Overloaded
from serve.gateway.recent_times import RecentTimes

Priority = Literal["interactive", "batch"]
BATCH_AFTER = 8  # interactive requests that are let through while a batch request waits
LONGEST_RETRY_S = 60


class _Waiter:
    """A request that waits. Its future is done when it has a place (a result) or has none to hope for (an error)."""

    def __init__(self, key_id: str, priority: Priority) -> None:
        self.key_id, self.priority = key_id, priority
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Queue:
    """The waiting requests of one class: keys take turns, and a key's own requests keep their order."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, OrderedDict[_Waiter, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of_key(self, key_id: str) -> int:
        """How many requests of the key wait."""
        return len(self._keys.get(key_id, ()))

    def add(self, waiter: _Waiter) -> None:
        self._keys.setdefault(waiter.key_id, OrderedDict())[waiter] = None
        self._count += 1

    def remove(self, waiter: _Waiter) -> None:
        """Take out one that may have been taken out before."""
        mine = self._keys.get(waiter.key_id, OrderedDict())
        if waiter in mine:
            del mine[waiter]
            self._count -= 1
            if not mine:
                del self._keys[waiter.key_id]

    def next(self) -> _Waiter:
        """Take out the first of the key whose turn it is. There must be one."""
        key_id, mine = next(iter(self._keys.items()))
        waiter = next(iter(mine))
        self.remove(waiter)
        if key_id in self._keys:
            self._keys.move_to_end(key_id)
        return waiter

    def newest_of_the_greediest(self) -> _Waiter:
        """The last request of the key with most of them. There must be one."""
        return next(reversed(self._keys[max(self._keys, key=self.of_key)]))


class Admission:
    """`slots` requests at work at a time, the others in a bounded queue. For one event loop.

    Interactive requests go before batch requests, except that one batch request goes through after every `BATCH_AFTER`
    interactive ones that passed it. Within a class keys take turns, whatever the number of their requests.

    When the queue is full, who has least claim to a place in it is sent away, which need not be who comes last: a batch
    request before an interactive one, as long as batch requests keep their share of the places, one in nine; then the
    last of the key with most requests. So neither a batch job nor a single key can shut the others out.
    """

    def __init__(
        self, slots: int, max_waiting: int, max_wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` is in seconds and measures how long requests take; waiting is measured by the event loop."""
        self._slots, self._max_waiting, self._max_wait_s, self._clock = slots, max_waiting, max_wait_s, clock
        self._running = 0
        self._queues: dict[Priority, _Queue] = {priority: _Queue() for priority in get_args(Priority)}
        self._passed_batch = 0  # interactive requests that were let through since a batch request began to wait
        self._times = RecentTimes()

    @property
    def running(self) -> int:
        """Requests at work."""
        return self._running

    @property
    def held(self) -> int:
        """Requests at work, and those that wait."""
        return self._running + self._all_waiting()

    def waiting(self, priority: Priority) -> int:
        """Requests of one class that wait."""
        return len(self._queues[priority])

    def resize(self, slots: int, max_waiting: int) -> None:
        """So many from now on. Requests at work go on, and those that wait keep their places."""
        self._slots, self._max_waiting = slots, max_waiting
        while self._running < self._slots and self._grant():
            self._running += 1

    @asynccontextmanager
    async def slot(self, key_id: str, priority: Priority = "interactive") -> AsyncIterator[None]:
        """Around one request at work, after the wait for its turn.

        Raises Overloaded when there is no place in the queue, or no longer, and after `max_wait_s` in it.
        """
        if self._running < self._slots:  # then nobody waits: a free slot is given away at once
            self._running += 1
        else:
            await self._turn(_Waiter(key_id, priority))
        start = self._clock()
        try:
            yield
        finally:
            self._times.add(self._clock() - start)
            self._pass_on()

    async def _turn(self, waiter: _Waiter) -> None:
        """Wait until `waiter` has a slot. Raises Overloaded."""
        self._make_room(waiter)
        queue = self._queues[waiter.priority]
        queue.add(waiter)
        timer = asyncio.get_running_loop().call_later(self._max_wait_s, self._send_away, waiter)
        goes_on = False
        try:
            await waiter.decided
            goes_on = True
        finally:
            timer.cancel()
            queue.remove(waiter)
            decided = waiter.decided
            if not goes_on and decided.done() and not decided.cancelled() and decided.exception() is None:
                self._pass_on()  # the slot was granted and the request cancelled in the same tick

    def _make_room(self, waiter: _Waiter) -> None:
        """Raise Overloaded when the queue is full and nobody in it has less claim to a place than `waiter`."""
        if self._all_waiting() < self._max_waiting:
            return
        interactive, batch = self._queues["interactive"], self._queues["batch"]
        share = self._max_waiting // (BATCH_AFTER + 1)  # places that batch requests hold against interactive ones
        if waiter.priority == "interactive" and len(batch) > share:
            self._send_away(batch.newest_of_the_greediest())
        elif waiter.priority == "batch" and len(batch) < share:
            self._send_away(interactive.newest_of_the_greediest())
        else:
            queue = self._queues[waiter.priority]
            last = queue.newest_of_the_greediest() if queue else None
            if last is None or queue.of_key(last.key_id) <= queue.of_key(waiter.key_id) + 1:
                raise self._overloaded()
            self._send_away(last)

    def _send_away(self, waiter: _Waiter) -> None:
        self._queues[waiter.priority].remove(waiter)
        if not waiter.decided.done():
            waiter.decided.set_exception(self._overloaded())

    def _pass_on(self) -> None:
        """Give a slot that became free to whoever's turn it is, unless there are fewer slots now."""
        if self._running > self._slots or not self._grant():
            self._running -= 1

    def _grant(self) -> bool:
        """Let in whoever's turn it is; False when nobody waits."""
        interactive, batch = self._queues["interactive"], self._queues["batch"]
        while interactive or batch:
            is_batch = bool(batch) and (not interactive or self._passed_batch >= BATCH_AFTER)
            waiter = (batch if is_batch else interactive).next()
            if not waiter.decided.done():  # else it was cancelled in this tick
                self._passed_batch = 0 if is_batch or not batch else self._passed_batch + 1
                waiter.decided.set_result(None)
                return True
        return False

    def _all_waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def _overloaded(self) -> Overloaded:
        wait = min(self._times.until_free(self._all_waiting(), self._slots), LONGEST_RETRY_S)
        return Overloaded("too many requests wait for an answer: try again later", retry_after=wait)
