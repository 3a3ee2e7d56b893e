import asyncio

import pytest

from edvit.errors import OverloadedError, TooManyRequestsError
from edvit.runtime.http.places import Places


class Crowd:
    """Requests that hold their places until they are told to go; says who got one, in order."""

    def __init__(self, at_once, waiting, a_client=None):
        self.places = Places(at_once, waiting, a_client)
        self.got = []
        self.refused = []
        self.leave = asyncio.Semaphore(0)
        self.tasks = []

    async def _ask(self, client):
        try:
            async with self.places.place(client):
                self.got.append(client)
                await self.leave.acquire()
        except (OverloadedError, TooManyRequestsError) as error:
            self.refused.append((client, error.code))

    async def come(self, clients):
        for client in clients:
            self.tasks.append(asyncio.create_task(self._ask(client)))
            await settle()
        return self.tasks[-1]

    async def go(self, count):
        for _ in range(count):
            self.leave.release()
            await settle()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def crowd(test):
    """Runs a coroutine function in an event loop."""
    return lambda: asyncio.run(test())


@crowd
async def test_a_client_gets_its_turn_before_all_of_anothers():
    them = Crowd(1, 10)
    await them.come("aaaaab")
    await them.go(3)
    assert them.got == list("aaba")


@crowd
async def test_turns_go_round():
    them = Crowd(2, 10)
    await them.come("aaabbbc")
    await them.go(5)
    assert them.got == list("aaabcbb")


@crowd
async def test_one_client_never_has_all_places():
    them = Crowd(3, 10, a_client=2)
    await them.come("aaaa")
    assert them.got == list("aa")
    await them.come("b")
    assert them.got == list("aab")
    await them.go(5)
    assert them.got == list("aabaa")


@crowd
async def test_one_client_alone_is_refused_for_overload():
    them = Crowd(1, 2)
    await them.come("aaaa")
    assert them.refused == [("a", "overloaded")]
    await them.go(3)
    assert them.got == ["a"] * 3


@crowd
async def test_a_newcomer_takes_the_place_in_the_queue_of_the_client_that_has_the_most():
    them = Crowd(1, 4)
    await them.come("aaaaab")
    assert them.refused == [("a", "too-many-requests")]
    await them.come("a")
    assert them.refused == [("a", "too-many-requests")] * 2
    await them.go(5)
    assert them.got.count("b") == 1


@crowd
async def test_who_goes_while_waiting_leaves_no_gap():
    them = Crowd(1, 2)
    waiting = await them.come("ab")
    waiting.cancel()
    await settle()
    await them.come("c")
    await them.go(1)
    assert them.got == ["a", "c"]
    await them.go(1)
    await them.come("d")
    assert them.got == ["a", "c", "d"]


@crowd
async def test_who_goes_as_its_turn_comes_passes_it_on():
    them = Crowd(1, 2)
    await them.come("a")
    second = await them.come("b")
    third = await them.come("c")
    them.leave.release()
    while them.places._queues.get("b") is not None:  # until b has its turn, which it does not know yet
        await asyncio.sleep(0)
    second.cancel()
    await settle()
    assert "c" in them.got
    assert not third.done()


def test_places_are_given_back_after_an_error():
    async def run():
        places = Places(1, 0)
        with pytest.raises(KeyError):
            async with places.place("a"):
                raise KeyError
        async with places.place("b"):
            pass

    asyncio.run(run())


@crowd
async def test_who_goes_in_the_moment_that_a_place_gets_free_does_not_take_it_along():
    """Its turn is cancelled already, and it has not left the queue yet."""
    them = Crowd(1, 2)
    first, second = await them.come("a"), await them.come("b")
    them.leave.release()  # the first one leaves before the second one knows that it is cancelled
    second.cancel()
    await settle()
    assert first.exception() is None
    await them.come("c")
    assert them.got == list("ac")


@crowd
async def test_who_waits_behind_one_that_goes_gets_the_place():
    them = Crowd(1, 3)
    second, _ = await them.come("ab"), await them.come("bc")
    them.leave.release()
    second.cancel()
    await settle()
    assert them.got == list("ab")


@crowd
async def test_room_in_the_queue_is_not_made_by_one_that_goes_already():
    them = Crowd(1, 3)
    newest = await them.come("aaaa")
    them.tasks.append(asyncio.create_task(them._ask("b")))
    newest.cancel()
    await settle()
    await them.go(4)
    assert not any(task.exception() for task in them.tasks if task is not newest)
    assert "b" in them.got


@crowd
async def test_who_is_refused_and_goes_gives_no_place_back():
    them = Crowd(1, 4)
    newest = await them.come("aaaaa")
    them.tasks.append(asyncio.create_task(them._ask("b")))
    await asyncio.sleep(0)  # now the newest one is refused, and does not know it yet
    newest.cancel()
    await settle()
    assert them.got == ["a"]


@crowd
async def test_fewer_places_take_none_away_and_more_are_given_at_once():
    them = Crowd(3, 10)
    await them.come("abcdef")
    them.places.resize(1)
    await them.go(2)
    assert them.got == list("abc")
    await them.go(1)
    assert them.got == list("abcd")
    them.places.resize(3)
    await settle()
    assert them.got == list("abcdef")
