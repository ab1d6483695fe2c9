"""Who waits, who goes next, who is sent away; and that no slot is ever lost or given twice."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serve.gateway.admission import BATCH_AFTER, Admission, Priority
from serve.gateway.errors import Overloaded

LONG_S = 30.0


class Door:
    """An admission, and requests that stay at work until they are told to end."""

    def __init__(self, slots: int, max_waiting: int = 1000, max_wait_s: float = LONG_S) -> None:
        self.seconds = 0.0
        self.admission = Admission(slots, max_waiting, max_wait_s, clock=lambda: self.seconds)
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def send(self, name: str, key: str = "a", priority: Priority = "interactive") -> asyncio.Task[None]:
        """A request that has either begun or waits when this returns."""
        self.ends[name] = asyncio.Event()

        async def request() -> None:
            async with self.admission.slot(key, priority):
                self.begun.append(name)
                await self.ends[name].wait()

        self.tasks[name] = asyncio.create_task(request())
        await self.settle()
        return self.tasks[name]

    async def end(self, name: str) -> None:
        """Let a request at work end, and whoever is next begin."""
        self.ends[name].set()
        await self.tasks[name]
        await self.settle()

    async def end_all(self) -> list[str]:
        """End one after another in the order in which they begin; gives that order."""
        done = 0
        while done < len(self.begun):
            await self.end(self.begun[done])
            done += 1
        assert self.counts() == (0, 0, 0)
        return self.begun

    def counts(self) -> tuple[int, int, int]:
        door = self.admission
        return door.running, door.waiting("interactive"), door.waiting("batch")

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(body())


def test_as_many_as_there_are_slots_and_the_others_in_order() -> None:
    async def body() -> None:
        door = Door(slots=2)
        for name in "12345":
            await door.send(name)
        assert door.begun == ["1", "2"]
        assert door.counts() == (2, 3, 0)
        await door.end("2")
        assert door.begun == ["1", "2", "3"]
        assert door.counts() == (2, 2, 0)
        for name in "134":
            await door.end(name)
        assert door.begun == list("12345")
        await door.end("5")
        assert door.counts() == (0, 0, 0)

    run(body)


def test_a_request_that_fails_passes_its_slot_on() -> None:
    async def body() -> None:
        door = Door(slots=1)

        async def failing() -> None:
            async with door.admission.slot("a"):
                await door.settle()
                raise ZeroDivisionError

        task = asyncio.create_task(failing())
        await asyncio.sleep(0)
        await door.send("next")
        with pytest.raises(ZeroDivisionError):
            await task
        await door.settle()
        assert door.begun == ["next"]
        await door.end_all()

    run(body)


def test_keys_take_turns_whatever_the_number_of_their_requests() -> None:
    async def body() -> None:
        door = Door(slots=1)
        await door.send("first", "greedy")
        for number in range(100):
            await door.send(f"greedy{number}", "greedy")
        await door.send("modest", "modest")
        for number in range(2):
            await door.send(f"third{number}", "third")
        order = await door.end_all()
        assert order[:7] == ["first", "greedy0", "modest", "third0", "greedy1", "third1", "greedy2"]
        assert order[7:] == [f"greedy{number}" for number in range(3, 100)]

    run(body)


def test_a_key_that_comes_again_does_not_go_before_those_that_wait() -> None:
    async def body() -> None:
        door = Door(slots=1)
        await door.send("running")
        await door.send("a0", "a")
        await door.send("b0", "b")
        await door.send("b1", "b")
        await door.end("running")  # a0 begins
        await door.send("a1", "a")
        assert (await door.end_all())[1:] == ["a0", "b0", "a1", "b1"]

    run(body)


def test_interactive_before_batch_which_is_not_starved() -> None:
    async def body() -> None:
        door = Door(slots=1)
        await door.send("running")
        for number in range(3):
            await door.send(f"b{number}", "job", "batch")
        for number in range(20):
            await door.send(f"i{number}", "ann")
        assert door.counts() == (1, 20, 3)
        interactive = [f"i{number}" for number in range(20)]
        assert (await door.end_all())[1:] == [
            *interactive[:BATCH_AFTER], "b0", *interactive[BATCH_AFTER : 2 * BATCH_AFTER], "b1",
            *interactive[2 * BATCH_AFTER :], "b2",
        ]  # fmt: skip

    run(body)


def test_only_those_that_pass_a_waiting_batch_request_count() -> None:
    async def body() -> None:
        door = Door(slots=1)
        await door.send("running")
        for number in range(3 * BATCH_AFTER):
            await door.send(f"i{number}")
        for name in ["running", *(f"i{number}" for number in range(BATCH_AFTER - 1))]:
            await door.end(name)
        await door.send("b", "job", "batch")
        order = await door.end_all()
        assert order.index("b") == 1 + 2 * BATCH_AFTER  # BATCH_AFTER before it came, and BATCH_AFTER since

    run(body)


def test_batch_requests_use_slots_that_nobody_else_wants() -> None:
    async def body() -> None:
        door = Door(slots=2)
        for name in "123":
            await door.send(name, priority="batch")
        assert door.counts() == (2, 0, 1)
        await door.end_all()

    run(body)


async def _overloaded(task: asyncio.Task[None]) -> Overloaded:
    with pytest.raises(Overloaded) as error:
        await task
    return error.value


def test_a_full_queue() -> None:
    async def body() -> None:
        door = Door(slots=1, max_waiting=2)
        for name in "123":
            await door.send(name)
        error = await _overloaded(await door.send("4"))
        assert (error.status, error.retry_after) == (429, 1)
        assert door.counts() == (1, 2, 0)
        assert await door.end_all() == list("123")

    run(body)


def test_no_queue_at_all() -> None:
    async def body() -> None:
        door = Door(slots=1, max_waiting=0)
        await door.send("1")
        await _overloaded(await door.send("2"))
        await _overloaded(await door.send("3", "b", "batch"))
        await door.end("1")
        await door.send("4")
        assert door.begun == ["1", "4"]
        await door.end("4")

    run(body)


@pytest.mark.parametrize(("took", "said"), [(0.5, 1), (30.0, 45), (1000.0, 60)])
def test_retry_after_follows_from_how_long_requests_took(took: float, said: int) -> None:
    """Two slots free one place every half of that time, and two are to go before."""

    async def body() -> None:
        door = Door(slots=2, max_waiting=2)
        await door.send("before")
        door.seconds += took
        await door.end("before")
        for name in "1234":
            await door.send(name)
        assert (await _overloaded(await door.send("5"))).retry_after == said
        await door.end("1")

    run(body)


def test_a_full_queue_keeps_who_has_the_better_claim() -> None:
    async def body() -> None:
        door = Door(slots=1, max_waiting=3)
        await door.send("running")
        for name in ("a0", "a1", "a2"):
            await door.send(name, "a")
        await door.send("b0", "b")  # a key with nothing in the queue, against one with three
        await _overloaded(door.tasks["a2"])
        await _overloaded(await door.send("b1", "b"))  # both would have two, less one: no better claim
        await _overloaded(await door.send("job", "c", "batch"))
        assert door.counts() == (1, 3, 0)
        await door.send("c0", "c")
        await _overloaded(door.tasks["a1"])
        await _overloaded(await door.send("d0", "d"))
        assert await door.end_all() == ["running", "a0", "b0", "c0"]

    run(body)


def test_classes_in_a_full_queue_keep_their_shares() -> None:
    async def body() -> None:
        places = BATCH_AFTER + 1
        door = Door(slots=1, max_waiting=places)
        await door.send("running")
        for number in range(places):
            await door.send(f"b{number}", "job", "batch")
        for number in range(places - 1):
            await door.send(f"i{number}")
            await _overloaded(door.tasks[f"b{places - 1 - number}"])
        assert door.counts() == (1, places - 1, 1)
        await _overloaded(await door.send("i"))  # the last place of batch requests is theirs
        await door.end("running")
        await door.send("i")
        door.tasks["b0"].cancel()
        await door.settle()
        await door.send("j")
        assert door.counts() == (1, places, 0)
        await door.send("b", "job", "batch")  # and they get it back
        await _overloaded(door.tasks["j"])
        assert door.counts() == (1, places - 1, 1)
        await door.end_all()

    run(body)


def test_who_waits_too_long_is_sent_away() -> None:
    async def body() -> None:
        door = Door(slots=1, max_wait_s=0.05)
        await door.send("1")
        assert (await _overloaded(await door.send("2"))).status == 429
        assert door.counts() == (1, 0, 0)
        await door.end("1")
        await door.send("3")
        await asyncio.sleep(0.1)  # whoever has a slot is not disturbed
        assert door.counts() == (1, 0, 0)
        await door.end("3")

    run(body)


def test_a_waiting_and_a_running_request_can_be_cancelled() -> None:
    async def body() -> None:
        door = Door(slots=1)
        for name in "1234":
            await door.send(name)
        door.tasks["2"].cancel()
        await door.settle()
        assert door.counts() == (1, 2, 0)
        door.tasks["1"].cancel()
        await door.settle()
        assert door.begun == ["1", "3"]
        assert door.counts() == (1, 1, 0)
        for name in "34":
            await door.end(name)
        assert door.counts() == (0, 0, 0)

    run(body)


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_cancelled_in_the_tick_in_which_it_is_granted(cancelled_first: bool) -> None:
    async def body() -> None:
        door = Door(slots=1)
        for name in "123":
            await door.send(name)
        waiting = door.tasks["2"]
        holder = door.tasks["1"]
        steps = [waiting.cancel, holder.cancel]  # the holder gives its slot away when it next runs
        if not cancelled_first:
            door.ends["1"].set()
            while door.counts()[1] == 2:  # up to the tick in which the slot is granted, and no further
                await asyncio.sleep(0)
            steps = [waiting.cancel]
        for step in steps:
            step()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await door.settle()
        assert door.begun == ["1", "3"]
        assert door.counts() == (1, 0, 0)
        await door.end("3")
        assert door.counts() == (0, 0, 0)

    run(body)


def test_the_last_one_is_cancelled_in_the_tick_in_which_it_is_granted() -> None:
    async def body() -> None:
        door = Door(slots=1)
        await door.send("1")
        waiting = await door.send("2")
        door.ends["1"].set()
        while door.counts()[1]:
            await asyncio.sleep(0)
        assert "2" not in door.begun
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert door.counts() == (0, 0, 0)

    run(body)


@pytest.mark.parametrize("ticks", range(12))
def test_a_timeout_around_the_tick_in_which_it_is_granted(ticks: int) -> None:
    """A caller's own timeout is a cancellation, too, which must not take the slot along."""

    async def body() -> None:
        door, loop = Door(slots=1), asyncio.get_running_loop()
        await door.send("1")

        def give_up(limit: asyncio.Timeout, after: int) -> None:
            if after:
                loop.call_soon(give_up, limit, after - 1)
            else:
                limit.reschedule(loop.time())

        async def impatient() -> None:
            async with asyncio.timeout(None) as limit:
                loop.call_soon(give_up, limit, ticks)
                async with door.admission.slot("b"):
                    await asyncio.sleep(LONG_S)

        task = asyncio.create_task(impatient())
        await asyncio.sleep(0)
        door.ends["1"].set()
        with pytest.raises(TimeoutError):
            await task
        await door.settle()
        assert door.counts() == (0, 0, 0)

    run(body)


@pytest.mark.parametrize("seed", range(20))
def test_slots_are_neither_lost_nor_given_twice(seed: int) -> None:
    chance = random.Random(seed)

    async def body() -> None:
        slots = chance.randint(1, 4)
        admission = Admission(slots, max_waiting=chance.randint(0, 12), max_wait_s=0.01)
        at_work = most = 0

        async def request() -> None:
            nonlocal at_work, most
            priority: Priority = chance.choice(("interactive", "batch"))
            async with admission.slot(chance.choice("abc"), priority):
                at_work += 1
                most = max(most, at_work)
                try:
                    for _ in range(chance.randint(0, 3)):
                        await asyncio.sleep(chance.choice((0, 0, 0.003)))
                    if chance.random() < 0.1:
                        raise ZeroDivisionError
                finally:
                    at_work -= 1

        tasks: list[asyncio.Task[None]] = []
        for _ in range(300):
            tasks.append(asyncio.create_task(request()))
            if chance.random() < 0.4:
                chance.choice(tasks).cancel()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in ended} <= {
            type(None), Overloaded, ZeroDivisionError, asyncio.CancelledError
        }  # fmt: skip
        assert most <= slots
        assert (admission.running, admission.waiting("interactive"), admission.waiting("batch")) == (0, 0, 0)
        async with asyncio.timeout(5):  # every slot is still there
            tasks = [asyncio.create_task(_hold(admission, slots)) for _ in range(slots)]
            await asyncio.gather(*tasks)

    run(body)


async def _hold(admission: Admission, together: int) -> None:
    async with admission.slot("a"):
        while admission.running < together:
            await asyncio.sleep(0)
        await asyncio.sleep(0)


def test_fewer_slots_disturb_nobody_and_more_let_in_who_waits() -> None:
    async def body() -> None:
        door = Door(slots=3)
        for name in "12345678":
            await door.send(name)
        assert door.counts() == (3, 5, 0)
        door.admission.resize(1, 1000)
        assert door.counts() == (3, 5, 0)
        for name in "12":  # their slots are gone
            await door.end(name)
        assert (door.begun, door.counts()) == (["1", "2", "3"], (1, 5, 0))
        await door.end("3")
        assert (door.begun[3:], door.counts()) == (["4"], (1, 4, 0))
        door.admission.resize(3, 1000)
        await door.settle()
        assert (door.begun[4:], door.counts()) == (["5", "6"], (3, 2, 0))
        door.admission.resize(10, 0)  # no more places to wait in: who has one keeps it
        await door.settle()
        assert (door.counts(), door.admission.held) == ((5, 0, 0), 5)
        assert len(await door.end_all()) == 8

    run(body)


def test_a_smaller_queue_takes_nobody_more() -> None:
    async def body() -> None:
        door = Door(slots=1)
        for name in "123":
            await door.send(name)
        door.admission.resize(1, 1)
        assert (await _overloaded(await door.send("4"))).status == 429
        assert await door.end_all() == ["1", "2", "3"]

    run(body)
