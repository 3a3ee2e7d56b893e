import re
import subprocess
import sys

import pytest
from benchmarks.compare.links import LinkSpec, means
from benchmarks.compare.namespaces import network

from edvit.errors import ConfigError, UnavailableError
from waiting import eventually

LINK = LinkSpec(100)
possible = pytest.mark.skipif(means(LINK).kind != "shaped", reason=means(LINK).reason or "possible")

SERVER = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
peer, _ = server.accept()
left = 500_000
while left:
    left -= len(peer.recv(left))
peer.sendall(b"k")
"""
CLIENT = """
import socket, sys
peer = socket.create_connection((sys.argv[1], 5000))
peer.sendall(bytes(500_000))
print(peer.recv(1).decode())
"""


def namespaces(prefix):
    done = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if name.startswith(prefix)]


def prefix_of(made):
    return made.nodes[0].name.rpartition("-")[0]


@possible
def test_every_node_reaches_every_other_and_nothing_is_left():
    with network(2, LINK) as made:
        prefix = prefix_of(made)
        assert len(namespaces(prefix)) == 4  # the gateway, two devices and the switch
        for source in range(3):
            for target in range(3):
                words = ["-c", "import socket,sys; socket.create_connection((sys.argv[1], 5000)).close()"]
                server = made.start(target, [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
                assert server.stdout.readline() == "up\n"
                assert made.start(source, [sys.executable, *words, made.nodes[target].address]).wait(20) == 0
                server.kill()
                server.wait()
                server.stdout.close()
    assert namespaces(prefix) == []


@possible
def test_bytes_are_counted_and_links_are_shaped():
    with network(1, LINK) as made:
        for node in (0, 1):
            shown = subprocess.run(
                made.command(node, ["tc", "qdisc", "show", "dev", "eth0"]), capture_output=True, text=True, check=True
            )
            assert re.match(r"qdisc tbf \S+ root .*rate 100Mbit", shown.stdout)
        before = [made.sent_bytes(node) for node in (0, 1)]
        with made.start(0, [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
            server.stdout.readline()
            client = [sys.executable, "-c", CLIENT, made.nodes[0].address]
            with made.start(1, client, stdout=subprocess.PIPE, text=True) as asking:
                assert asking.stdout.read() == "k\n"
        answered, sent = (made.sent_bytes(node) - then for node, then in zip((0, 1), before, strict=True))
        assert 500_000 < sent < 600_000  # with headers
        assert 0 < answered < 100_000


@possible
def test_processes_and_namespaces_end_with_an_exception():
    with pytest.raises(RuntimeError, match="mine"), network(1, LINK) as made:
        prefix = prefix_of(made)
        process = made.start(1, ["sleep", "100"])
        raise RuntimeError("mine")
    assert process.poll() is not None
    assert namespaces(prefix) == []


HOLDER = """
import time
from benchmarks.compare.links import LinkSpec
from benchmarks.compare.namespaces import network
with network(1, LinkSpec(100)) as made:
    print(made.nodes[0].name.rpartition("-")[0], flush=True)
    time.sleep(100)
"""


@possible
def test_namespaces_end_with_a_process_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        prefix = holder.stdout.readline().strip()
        assert len(namespaces(prefix)) == 3
        holder.kill()
    assert eventually(lambda: not namespaces(prefix))


@possible
def test_two_networks_do_not_meet():
    with network(1, LINK) as one, network(1, LINK) as other:
        assert {node.name for node in one.nodes}.isdisjoint(node.name for node in other.nodes)


@pytest.mark.parametrize("devices", [0, 251])
def test_a_network_that_is_too_small_or_too_large_is_refused(devices):
    with pytest.raises(ConfigError, match=f"1 to 250 devices, not {devices}"), network(devices, LINK):
        pass


def test_links_that_cannot_be_shaped_here_are_told():
    delayed = LinkSpec(100, 5)
    if means(delayed).kind == "shaped":
        pytest.skip("this machine can shape them")
    with pytest.raises(UnavailableError, match=r"the link 100mbit,5ms cannot be shaped: ."), network(1, delayed):
        pass


@pytest.mark.skipif(means(LinkSpec(100, 5)).kind != "shaped", reason=means(LinkSpec(100, 5)).reason or "possible")
def test_delay_and_loss_are_shaped():
    with network(1, LinkSpec(100, 5, 0.01)) as made:
        shown = subprocess.run(
            made.command(1, ["tc", "qdisc", "show", "dev", "eth0"]), capture_output=True, text=True, check=True
        )
        assert re.search(r"netem .*delay 5ms loss 1% rate 100Mbit", shown.stdout)
