"""Uploads that are meant to do harm, against a gateway as a user runs it: each is refused, and others are answered."""

import contextlib
import io
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from edvit.runtime.http.body import NPY
from hostile_files import grey_16_bits, long_comment, npy_header, plain_ppm, scans
from serving import serving
from tiny_bundle import write_tiny_bundle
from waiting import eventually

pytestmark = pytest.mark.slow

MOST_BYTES = 400_000_000
FILE = "application/octet-stream"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("hostile") / "bundle", submodels=2)
    with serving(bundle.path, "--local", "--deadline-s", "60") as running:
        yield running


@pytest.fixture
def polite(served):
    """A client at another address."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=served.url, transport=transport, timeout=120) as client:
        yield client


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 10, 10)).save(buffer, format="JPEG")
    return buffer.getvalue()


def is_answered(client):
    response = client.post("/predict", content=jpeg(), headers={"content-type": "image/jpeg"})
    assert response.status_code == 200, response.text
    return not response.json()["degraded"]


class Memory:
    """The most memory that a gateway has within a block."""

    def __init__(self, served):
        self.most = 0
        self._served = served
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        while not self._over.wait(0.05):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.most = max(self.most, self._served.memory_bytes())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def send(served, data, media_type=FILE, times=1):
    """Statuses and codes of so many requests at once."""

    def post(_):
        headers = {"content-type": media_type}
        response = httpx.post(f"{served.url}/predict", content=data, headers=headers, timeout=200)
        return response.status_code, "" if response.is_success else response.json()["error"]["code"]

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(post, range(times)))


def connect(served, text):
    url = httpx.URL(served.url)
    connection = socket.create_connection((url.host, url.port), timeout=120)
    connection.sendall(text)
    return connection


BUSY = {(503, "overloaded"), (429, "too-many-requests")}

NO_SHAPE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 8, 8), }"
HOSTILE = {
    "16-bit grey": (grey_16_bits(7000, 7000), FILE, {(413, "too-large")}),
    "repeated scans": (scans(2000), FILE, {(422, "too-costly")}),
    "megabytes of comment": (long_comment(19_000_000), FILE, {(422, "too-costly"), *BUSY}),
    "pixels as text": (plain_ppm(2_200_000), FILE, {(422, "too-costly"), (200, ""), *BUSY}),
    "no number in a shape": (
        npy_header(NO_SHAPE),
        NPY,
        None,
    ),
    "nine thousand brackets": (npy_header(b"(" * 9000), NPY, None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_sixteen_of_a_hostile_file_are_refused_within_memory_and_nobody_waits(served, polite, name):
    data, media_type, allowed = HOSTILE[name]
    with Memory(served) as memory, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(send, served, data, media_type, 16)
        answered = [is_answered(polite) for _ in range(20)]
        outcomes = pending.result(300)
    assert all(answered)
    assert set(outcomes) <= (allowed or {(400, "bad-image")})
    assert memory.most < MOST_BYTES


def test_the_memory_of_sixty_large_bodies_is_counted_and_comes_back(served, polite):
    is_answered(polite)
    before = served.memory_bytes()
    with Memory(served) as memory, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(send, served, bytes(19_900_000), FILE, 60)
        answered = [is_answered(polite) for _ in range(20)]
        outcomes = pending.result(300)
    assert all(answered)
    assert set(outcomes) <= {(415, "unsupported-media"), *BUSY}
    assert (415, "unsupported-media") in outcomes
    assert memory.most < MOST_BYTES
    eventually(lambda: served.memory_bytes() < before + 60_000_000, 60)


@pytest.mark.parametrize("announced", [1_000, 500_000, 19_000_000])
def test_half_bodies_cost_nobody_else(served, polite, announced):
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {announced}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(connect(served, head.encode() + bytes(500)))
        assert all(is_answered(polite) for _ in range(20))


def test_more_connections_than_handles(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle", submodels=2)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = (256, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, few)  # the gateway inherits it
    try:
        started = contextlib.ExitStack()
        served = started.enter_context(serving(bundle.path, "--local", "--deadline-s", "60"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with started:
        for _ in range(300):
            started.enter_context(connect(served, b""))
        with httpx.Client(base_url=served.url, timeout=120) as client:
            assert all(is_answered(client) for _ in range(5))
        assert psutil.Process(served.process.pid).num_fds() < 256
        served.stop()
        said = served.process.stdout.read()
        assert "Too many open files" not in said
        assert "Traceback" not in said


def test_a_signal_with_requests_under_way_leaves_no_traceback(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle", submodels=2)
    with serving(bundle.path, "--local", "--deadline-s", "600") as served:
        for device in served.devices.values():
            device.suspend()
        array = np.zeros((1, 3, 16, 16), dtype=np.uint8)
        buffer = io.BytesIO()
        np.save(buffer, array)
        request = (
            f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {NPY}\r\nContent-Length: {len(buffer.getvalue())}"
        )
        with contextlib.ExitStack() as stack:
            whole = [request.encode() + b"\r\n\r\n" + buffer.getvalue()] * 4
            asked = [stack.enter_context(connect(served, text)) for text in [*whole, request.encode() + b"\r\n\r\nx"]]
            is_up = httpx.get(f"{served.url}/health", timeout=60)
            assert is_up.status_code == 200
            code, _ = served.stop(within_s=60)
            assert code == 0
            for connection in asked:
                assert connection.recv(1000).startswith(b"HTTP/1.1 503 ")
        said = served.process.stdout.read()
    assert "Traceback" not in said
    assert "Cancel" not in said


def test_decoders_do_not_outlive_a_gateway_that_was_killed(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle", submodels=2)
    with serving(bundle.path, "--local") as served:
        children = psutil.Process(served.process.pid).children(recursive=True)
        assert len(children) > len(served.devices)
        served.process.kill()
        eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 60)
