import asyncio

import pytest

from edvit.errors import OverloadedError, SlowUploadError, TooManyRequestsError
from edvit.runtime.http import room as module
from edvit.runtime.http.room import Room
from waiting import eventually_async


async def hold(room, size, client, done, said):
    try:
        async with room.hold(size, client):
            said.append(client)
            await done.wait()
    except (OverloadedError, TooManyRequestsError) as error:
        said.append(error.code)


async def started(room, *sizes):
    """Bodies of these sizes and clients, begun in this order; what they said, and the event that ends them."""
    done, said = asyncio.Event(), []
    tasks = [asyncio.create_task(hold(room, size, client, done, said)) for size, client in sizes]
    await asyncio.sleep(0.01)
    return tasks, done, said


def test_a_body_waits_until_there_is_room():
    async def run():
        tasks, done, said = await started(Room(10, 10), (6, "a"), (6, "b"), (4, "c"))
        assert said == ["a", "c"]
        done.set()
        await asyncio.gather(*tasks)
        assert said == ["a", "c", "b"]

    asyncio.run(run())


def test_one_client_has_its_share_alone(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.05)

    async def run():
        tasks, done, said = await started(Room(10, 5), (5, "a"), (1, "a"), (5, "b"))
        assert said == ["a", "b"]
        await eventually_async(lambda: "too-many-requests" in said)
        done.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_room_that_does_not_come_is_overload(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.05)

    async def run():
        room = Room(10, 10)
        tasks, done, said = await started(room, (10, "a"), (1, "b"))
        await eventually_async(lambda: said == ["a", "overloaded"])
        done.set()
        await asyncio.gather(*tasks)
        async with room.hold(10, "c"):
            pass

    asyncio.run(run())


def test_a_slow_body_gives_its_room_to_one_that_waits(monkeypatch):
    monkeypatch.setattr(module, "SLOW_S", 0.01)
    monkeypatch.setattr(module, "LOOK_S", 0.01)

    async def run():
        room = Room(10, 10)
        cut_off = asyncio.Event()

        async def slow():
            async with room.hold(10, "slow") as held:
                with pytest.raises(SlowUploadError, match="others wait"), held.reading():
                    await asyncio.Event().wait()
            cut_off.set()

        task = asyncio.create_task(slow())
        await asyncio.sleep(0.05)
        assert not cut_off.is_set()  # nobody waits
        async with room.hold(10, "quick"):
            assert cut_off.is_set()
        await task

    asyncio.run(run())


def test_who_stops_waiting_leaves_no_gap():
    async def run():
        room = Room(10, 10)
        tasks, done, said = await started(room, (10, "a"), (10, "b"))
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        done.set()
        await tasks[0]
        async with room.hold(10, "c"):
            pass
        assert said == ["a"]

    asyncio.run(run())
