"""One contract, two transports: what holds in memory holds over Zenoh."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from edvit.errors import EdvitError, MemoryLimitError, ServiceError
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.transport import MAX_WAITING, Ended, Failure, Reply
from edvit.runtime.wire.zenoh_transport import ZenohTransport
from free_port import free_endpoint
from memory_transport import MemoryNetwork, MemoryTransport
from waiting import eventually

EMPTY = Packet(b"{}")
LONG_S = 120.0
"""A deadline that no test may wait for."""


class Net:
    """Makes participants: the first is reached by all others."""

    def __init__(self, make):
        self._make = make
        self.nodes = []

    def node(self):
        node = self._make()
        self.nodes.append(node)
        if len(self.nodes) > 1:
            self._join(node)
        return node

    def _join(self, node):
        """Until the newcomer and the first one see each other."""
        seen = threading.Event()
        self.nodes[0].watch(f"joined/{len(self.nodes)}", lambda key, alive: seen.set())
        node.announce(f"joined/{len(self.nodes)}")
        assert seen.wait(20)

    def close(self):
        for node in reversed(self.nodes):
            node.close()


@pytest.fixture(params=["memory", "zenoh"])
def net(request):
    if request.param == "memory":
        network = MemoryNetwork()
        net = Net(lambda: MemoryTransport(network))
    else:
        endpoint = free_endpoint()

        def make():
            first = not net.nodes
            return ZenohTransport(
                listen=[endpoint] if first else [], connect=[] if first else [endpoint], scouting=False
            )

        net = Net(make)
    yield net
    net.close()


def ask(node, key, packet=EMPTY, deadline_s=LONG_S):
    return list(node.ask(key, packet, deadline_s=deadline_s))


def ask_served(node, key, packet=EMPTY):
    """Ask until someone serves the key: it takes a moment until others know of it."""
    return eventually(lambda: ask(node, key, packet))


def echo(key):
    return lambda request: [Reply(key, request.packet)]


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_header_and_payload_arrive_as_they_were_sent(net, size):
    hub, leaf = net.node(), net.node()
    leaf.serve("a/b", echo("a/b"))
    packet = Packet(b'{"x": 1}', os.urandom(size))
    assert ask_served(hub, "a/b", packet) == [Reply("a/b", packet)]


def test_the_hub_can_serve_too(net):
    hub, leaf = net.node(), net.node()
    hub.serve("a/*", echo("a/b"))
    assert ask_served(leaf, "a/b") == [Reply("a/b", Packet(b"{}"))]


def test_one_question_reaches_everyone_once(net):
    hub, *leaves = [net.node() for _ in range(4)]
    asked = [0, 0, 0]

    def serve(i):
        def handle(request):
            if request.packet.header == b"count":
                asked[i] += 1
            yield Reply(f"infer/0/{i}", request.packet)
            yield Reply(f"infer/1/{i}", request.packet)

        leaves[i].serve(f"infer/*/{i}", handle)

    for i in range(3):
        serve(i)
        ask_served(hub, f"infer/*/{i}")
    replies = ask(hub, "infer/*/*", Packet(b"count"))
    assert sorted(reply.key for reply in replies) == [f"infer/{a}/{b}" for a in range(2) for b in range(3)]
    assert asked == [1, 1, 1]
    assert [reply.key for reply in ask(hub, "infer/1/2")] == ["infer/1/2"]


def test_each_of_several_keys_is_asked(net):
    hub, one, two = net.node(), net.node(), net.node()
    one.serve("n/1", echo("n/1"))
    two.serve("n/2", echo("n/2"))
    for key in ("n/1", "n/2"):
        ask_served(hub, key)
    for size in (10, 300_000):
        packet = Packet(b"{}", os.urandom(size))
        for _ in range(3):
            replies = hub.ask_each(["n/1", "n/2", "n/nobody"], packet, deadline_s=LONG_S)
            assert sorted(replies, key=lambda reply: reply.key) == [Reply("n/1", packet), Reply("n/2", packet)]


def test_it_is_told_which_key_has_ended_and_more_can_be_asked_meanwhile(net):
    hub, leaf = net.node(), net.node()
    leaf.serve("n/1", echo("n/1"))
    ask_served(hub, "n/1")
    packet, until = Packet(b"{}"), time.monotonic() + LONG_S
    replies = hub.ask_each(["n/nobody"], packet, deadline_s=LONG_S)
    assert replies.take(until) == Ended("n/nobody")
    assert replies.over
    assert hub.ask_each(["n/1"], packet, deadline_s=LONG_S, into=replies) is replies
    assert [replies.take(until), replies.take(until)] == [Reply("n/1", packet), Ended("n/1")]
    assert replies.over
    assert replies.take(until) is None


def test_many_requests_to_each_of_several_keys(net):
    hub, leaf = net.node(), net.node()
    for key in ("n/1", "n/2"):
        leaf.serve(key, echo(key))
        ask_served(hub, key)
    packets = [Packet(str(i).encode(), os.urandom(100_000)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda packet: list(hub.ask_each(["n/1", "n/2"], packet, deadline_s=LONG_S)), packets))
    assert [{reply.packet for reply in each} for each in replies] == [{packet} for packet in packets]
    assert [len(each) for each in replies] == [2] * 8


def test_answers_of_one_server_keep_their_order(net):
    hub, leaf = net.node(), net.node()
    leaf.serve("n/*", lambda request: (Reply(f"n/{i}", Packet(b"")) for i in range(50)))
    assert [reply.key for reply in ask_served(hub, "n/*")] == [f"n/{i}" for i in range(50)]


def test_nobody_serves(net):
    hub, _ = net.node(), net.node()
    assert ask(hub, "nobody/here") == []


def test_an_error_comes_back_as_its_class_after_the_answers_before_it(net):
    hub, leaf = net.node(), net.node()

    def handle(request):
        yield Reply("a/b", Packet(b"first"))
        raise MemoryLimitError("too much")

    leaf.serve("a/b", handle)
    answer, failure = ask_served(hub, "a/b")
    assert answer.packet.header == b"first"
    assert type(failure.error) is MemoryLimitError
    assert str(failure.error) == "too much"


def test_an_unknown_exception_leaks_nothing_and_ends_nothing(net):
    hub, leaf = net.node(), net.node()

    def handle(request):
        if request.packet.header == b"bad":
            raise ValueError("secret /home/user/key")
        return [Reply("a/b", request.packet)]

    leaf.serve("a/b", handle)
    ask_served(hub, "a/b")
    (failure,) = ask(hub, "a/b", Packet(b"bad"))
    assert isinstance(failure, Failure)
    assert failure.error.code == EdvitError.code
    assert "secret" not in str(failure.error)
    assert "ValueError" not in str(failure.error)
    assert ask(hub, "a/b") == [Reply("a/b", Packet(b"{}"))]


def test_an_answer_under_another_key_is_not_taken(net):
    hub, leaf = net.node(), net.node()
    leaf.serve("a/*", lambda request: [Reply("c/d", Packet(b"")), Reply("a/b", Packet(b""))])
    assert [reply.key for reply in ask_served(hub, "a/b")] == ["a/b"]


class Stuck:
    """A handler that holds a request until it is let go."""

    def __init__(self, key):
        self._key = key
        self.began = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, request):
        if request.packet.header == b"stick":
            self.began.set()
            assert self.let_go.wait(60)
        yield Reply(self._key, request.packet)


def test_the_deadline_ends_the_wait(net):
    hub, leaf = net.node(), net.node()
    stuck = Stuck("a/b")
    leaf.serve("a/b", stuck)
    ask_served(hub, "a/b")
    assert ask(hub, "a/b", Packet(b"stick"), deadline_s=0.2) == []
    stuck.let_go.set()
    eventually(lambda: ask(hub, "a/b", Packet(b"again")) == [Reply("a/b", Packet(b"again"))])


@pytest.mark.parametrize("what", ["registration", "transport"])
def test_closing_ends_the_wait(net, what):
    hub, leaf = net.node(), net.node()
    stuck = Stuck("a/b")
    registration = leaf.serve("a/b", stuck)
    ask_served(hub, "a/b")
    start = time.monotonic()
    replies = hub.ask("a/b", Packet(b"stick"), deadline_s=LONG_S)
    assert stuck.began.wait(20)
    (registration if what == "registration" else leaf).close()
    assert list(replies) == []
    assert time.monotonic() - start < LONG_S
    stuck.let_go.set()
    assert ask(hub, "a/b") == []


def test_the_quick_are_not_kept_by_the_slow(net):
    hub, slow, quick = net.node(), net.node(), net.node()
    stuck = Stuck("a/slow")
    slow.serve("a/slow", stuck)
    quick.serve("a/quick", echo("a/quick"))
    ask_served(hub, "a/slow")
    ask_served(hub, "a/quick")
    replies = hub.ask("a/*", Packet(b"stick"), deadline_s=LONG_S)
    assert next(replies).key == "a/quick"
    stuck.let_go.set()
    assert [reply.key for reply in replies] == ["a/slow"]


def test_requests_are_answered_in_order_with_their_time_of_arrival(net):
    hub, leaf = net.node(), net.node()
    stuck = Stuck("a/b")
    seen = []

    def handle(request):
        seen.append((request.packet.header, request.arrived))
        yield from stuck(request)

    leaf.serve("a/b", handle)
    ask_served(hub, "a/b")
    seen.clear()
    waiting = [hub.ask("a/b", Packet(header), deadline_s=LONG_S) for header in (b"stick", b"1", b"2")]
    assert stuck.began.wait(20)
    time.sleep(0.05)
    released = time.monotonic()
    stuck.let_go.set()
    assert [[reply.packet.header for reply in replies] for replies in waiting] == [[b"stick"], [b"1"], [b"2"]]
    assert [header for header, _ in seen] == [b"stick", b"1", b"2"]
    arrivals = [arrived for _, arrived in seen]
    assert arrivals == sorted(arrivals)
    # The time it waited for the handler counts.
    assert arrivals[0] < released


def test_under_overload_the_oldest_is_dropped(net):
    hub, leaf = net.node(), net.node()
    stuck = Stuck("a/b")
    leaf.serve("a/b", stuck)
    ask_served(hub, "a/b")
    first = hub.ask("a/b", Packet(b"stick"), deadline_s=LONG_S)
    assert stuck.began.wait(20)
    waiting = [hub.ask("a/b", Packet(b"%d" % i), deadline_s=LONG_S) for i in range(MAX_WAITING + 1)]
    assert list(waiting[0]) == []
    stuck.let_go.set()
    assert len(list(first)) == 1
    assert [len(list(replies)) for replies in waiting[1:]] == [1] * MAX_WAITING


def test_liveliness(net):
    hub, leaf = net.node(), net.node()
    early = leaf.announce("alive/early/1")
    eventually(lambda: _sees(hub, "alive/*/1"))
    changes = []
    watching = hub.watch("alive/*/*", lambda key, alive: changes.append((key, alive)))
    eventually(lambda: ("alive/early/1", True) in changes)
    leaf.announce("alive/late/2")
    leaf.announce("elsewhere/late/2")
    eventually(lambda: ("alive/late/2", True) in changes)
    early.close()
    early.close()
    eventually(lambda: ("alive/early/1", False) in changes)
    assert ("alive/late/2", False) not in changes
    leaf.close()
    eventually(lambda: ("alive/late/2", False) in changes)
    assert not any(key.startswith("elsewhere") for key, _ in changes)
    watching.close()


def _sees(node, key):
    seen = []
    watching = node.watch(key, lambda key, alive: seen.append(key))
    time.sleep(0.05)
    watching.close()
    return seen


def test_questions_from_many_threads(net):
    hub, leaf = net.node(), net.node()
    leaf.serve("a/b", echo("a/b"))
    ask_served(hub, "a/b")
    got = {}

    def work(i):
        got[i] = [ask(hub, "a/b", Packet(b"%d" % i, bytes([i]) * 1000)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert got[i] == [[Reply("a/b", Packet(b"%d" % i, bytes([i]) * 1000))]] * 20


def test_closing_twice_is_fine(net):
    node = net.node()
    registration = node.serve("a/b", echo("a/b"))
    registration.close()
    registration.close()
    node.close()
    node.close()


@pytest.mark.parametrize("size", [0, 300_000])
@pytest.mark.parametrize("how", ["ask", "ask_each"])
def test_closing_the_session_that_asks_ends_its_waits(net, how, size):
    hub, leaf = net.node(), net.node()
    stuck = Stuck("a/b")
    leaf.serve("a/b", stuck)
    ask_served(hub, "a/b")
    packet = Packet(b"stick", bytes(size))
    waiting = [
        hub.ask("a/b", packet, deadline_s=LONG_S) if how == "ask" else hub.ask_each(["a/b"], packet, deadline_s=LONG_S)
        for _ in range(3)
    ]
    assert stuck.began.wait(60)
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(list, waiting[0])
        hub.close()
        assert waited.result(LONG_S) == []
    assert [list(replies) for replies in waiting[1:]] == [[], []]
    assert list(hub.ask("a/b", packet, deadline_s=LONG_S)) == []
    assert list(hub.ask_each(["a/b"] * 2, packet, deadline_s=LONG_S)) == []
    assert time.monotonic() - start < LONG_S
    stuck.let_go.set()


@pytest.mark.parametrize("what", ["serve", "announce", "watch"])
def test_a_closed_transport_takes_nothing_more(net, what):
    node = net.node()
    node.close()
    arguments = {"serve": [echo("a/b")], "announce": [], "watch": [lambda key, alive: None]}[what]
    with pytest.raises(ServiceError, match="closed"):
        getattr(node, what)("a/b", *arguments)


def test_a_closed_registration_is_forgotten(net):
    node = net.node()
    registration = node.serve("a/b", echo("a/b"))
    forgotten = weakref.ref(registration)
    registration.close()
    del registration
    gc.collect()
    assert forgotten() is None


def test_a_wait_can_be_ended_from_another_thread(net):
    hub, leaf = net.node(), net.node()
    stuck = Stuck("a/b")
    leaf.serve("a/b", stuck)
    ask_served(hub, "a/b")
    replies = hub.ask("a/b", Packet(b"stick"), deadline_s=LONG_S)
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(list, replies)
        replies.close()
        assert waited.result(LONG_S) == []
    stuck.let_go.set()
