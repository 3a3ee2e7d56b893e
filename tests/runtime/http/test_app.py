"""The HTTP API over a bundle that runs in this process; tests/system has it over real devices."""

import contextlib
import io
import re
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from edvit.errors import DeadlineError, EdvitError, OverloadedError, UnavailableError
from edvit.inputs.preprocess import decode_image
from edvit.runtime.gateway.device_state import DeviceStatus
from edvit.runtime.gateway.hedging import CopiesAsked
from edvit.runtime.http import app as http
from edvit.runtime.http import upload
from edvit.runtime.http.app import WORKERS, create_app, fleet_of, health_of
from edvit.runtime.http.client import Client
from edvit.runtime.http.decoders import Decoders
from edvit.runtime.http.server import HttpServer, bind
from edvit.runtime.http.uploads import Uploads
from edvit.runtime.prediction import Prediction, Timings
from edvit.runtime.predictor import LocalPredictor
from tiny_bundle import write_tiny_bundle
from waiting import eventually

IMAGE = np.full((3, 16, 16), 77, dtype=np.uint8)
NO_TIME = Timings(total_s=0.0, gather_s=0.0, slowest_run_s=0.0, fuse_s=0.0)


def status(name, submodels, *, alive=True, planned=None, **changes):
    values = {
        "name": name,
        "alive": alive,
        "planned": submodels if planned is None else planned,
        "submodels": submodels,
        "memory_bytes": 5,
        "memory_limit_bytes": 10,
        "host": "here",
        "pid": 1,
        "problem": None,
    }
    return DeviceStatus(**{**values, **changes})


def png():
    buffer = io.BytesIO()
    Image.fromarray(IMAGE.transpose(1, 2, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


class OneProcess(LocalPredictor):
    """A `LocalPredictor` that also says which devices there are."""

    longest_s = 60.0
    replicas = 1
    copies_asked = CopiesAsked()

    def predict(self, images, *, since=None):
        del since
        return self.run(images)

    def devices(self):
        return (status("dev-1", (0,)), status("dev-2", (1,)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("http") / "bundle", submodels=2, classes=7)


@pytest.fixture(scope="module")
def predictor(bundle):
    return OneProcess(bundle)


@pytest.fixture
def serve(bundle, predictor):
    """Starts the API over a predictor, the bundle's own unless another is given; returns its URL."""
    opened = []

    def start(over=predictor):
        uploads = Uploads(bundle.manifest.preprocessing)
        server = HttpServer(create_app(over, bundle.manifest, uploads), bind("127.0.0.1", 0))
        opened.extend([uploads, server])
        return server.start().url

    yield start
    for one in reversed(opened):
        one.close()


def test_predict_agrees_with_the_predictor(serve, predictor):
    with Client(serve()) as client:
        answer = client.predict_array(IMAGE)
    expected = predictor.predict(IMAGE[None])
    assert answer.index == expected.indices[0]
    assert [score.probability for score in answer.top] == sorted(map(float, expected.probabilities[0]))[:-6:-1]
    assert answer.timings.total_ms >= answer.timings.gather_ms >= answer.timings.slowest_run_ms >= 0


def test_the_label_comes_first_for_people_who_read_json(serve):
    with Client(serve()) as client:
        assert next(iter(client.predict_array(IMAGE).model_dump())) == "label"


class Failing(OneProcess):
    def __init__(self, bundle, error):
        super().__init__(bundle)
        self.error = error

    def predict(self, images, *, since=None):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DeadlineError("too late"), (504, "deadline"), "too late"),
        (UnavailableError("nobody there"), (503, "unavailable"), "nobody there"),
        (
            RuntimeError("secret /home/me/password"),
            (500, "internal"),
            "internal error; the gateway's log has the detail",
        ),
    ],
)
def test_errors_have_their_status_and_defects_keep_their_detail(serve, bundle, error, code, text):
    response = httpx.post(serve(Failing(bundle, error)) + "/predict", files={"file": ("x.png", png())})
    assert (response.status_code, response.json()["error"]["code"]) == code
    assert response.json() == {"error": {"code": code[1], "message": text}}


def test_health_answers_while_every_worker_is_busy(serve, bundle, predictor):
    begun, release = threading.Semaphore(0), threading.Event()

    class Slow(OneProcess):
        def predict(self, images, *, since=None):
            begun.release()
            assert release.wait(60)
            return predictor.predict(images)

    url = serve(Slow(bundle))
    indices = []

    def ask():
        with Client(url, timeout_s=60) as client:
            indices.append(client.predict_array(IMAGE).index)

    askers = [threading.Thread(target=ask) for _ in range(WORKERS + 4)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(WORKERS):
            assert begun.acquire(timeout=30)
        with Client(url) as client:
            assert client.health().status == "ready"
    finally:
        release.set()
    for asker in askers:
        asker.join(30)
    assert indices == [predictor.predict(IMAGE[None]).indices[0]] * len(askers)


def test_the_wait_for_a_worker_counts_towards_the_deadline(serve, bundle):
    """Requests that no worker takes before their deadline are told so while every worker is still held up."""
    release = threading.Event()

    class Held(OneProcess):
        longest_s = 0.5

        def predict(self, images, *, since=None):
            assert since is not None
            assert release.wait(60)
            raise DeadlineError("held up")

    url = serve(Held(bundle))
    with ThreadPoolExecutor(WORKERS + 4) as pool:

        def ask(_):
            with Client(url, timeout_s=60) as client, pytest.raises(DeadlineError) as caught:
                client.predict_array(IMAGE)
            return str(caught.value)

        pending = [pool.submit(ask, i) for i in range(WORKERS + 4)]
        try:
            eventually(lambda: sum(one.done() for one in pending) == 4, 60)
            assert all("every worker was busy for 0.5 s" in one.result() for one in pending if one.done())
        finally:
            release.set()


def test_the_wait_for_a_decoder_counts_towards_the_deadline(serve, bundle, predictor, monkeypatch):
    waited, decode = [], Decoders.decode

    async def decode_later(self, *asked):
        array, seconds = await decode(self, *asked)
        return array, seconds + 5.0

    class Noting(OneProcess):
        def predict(self, images, *, since=None):
            waited.append(time.perf_counter() - since)
            return predictor.predict(images)

    monkeypatch.setattr(Decoders, "decode", decode_later)
    assert httpx.post(serve(Noting(bundle)) + "/predict", files={"file": ("x.png", png())}).status_code == 200
    assert waited[0] >= 5.0


def most_at_once(serve, bundle, predictor, image):
    """How many requests are worked on at once after many that took long, though they were answered."""
    working, most, slow = [], [], threading.Event()  # the event is never set

    class Slow(OneProcess):
        longest_s = 2.0

        def predict(self, images, *, since=None):
            working.append(images)
            most.append(len(working))
            slow.wait(0.9)
            working.pop()
            return predictor.predict(images)

    url = serve(Slow(bundle))

    def ask(_):
        with Client(url, timeout_s=60) as client, contextlib.suppress(EdvitError):
            (client.predict_batch if image.ndim == 4 else client.predict_array)(image)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(ask, range(6 * WORKERS)))
        most.clear()
        list(pool.map(ask, range(WORKERS)))
    return max(most)


def test_fewer_requests_are_worked_on_at_once_while_answers_take_too_long(serve, bundle, predictor):
    """Devices that are asked more at once than they can answer in time would answer none in time."""
    assert most_at_once(serve, bundle, predictor, IMAGE) <= WORKERS // 2


def test_batches_that_take_long_do_not_hold_up_others(serve, bundle, predictor):
    assert most_at_once(serve, bundle, predictor, np.stack([IMAGE, IMAGE])) >= WORKERS // 4


def test_too_many_requests_at_once_are_refused_until_some_are_done(serve, bundle, predictor, monkeypatch):
    monkeypatch.setattr(http, "WORKERS", 1)
    monkeypatch.setattr(http, "MAX_REQUESTS", 1)
    begun, release = threading.Event(), threading.Event()

    class Slow(OneProcess):
        def predict(self, images, *, since=None):
            begun.set()
            assert release.wait(60)
            return predictor.predict(images)

    url = serve(Slow(bundle))
    with ThreadPoolExecutor(1) as pool, Client(url, timeout_s=60) as first, Client(url) as second:
        pending = pool.submit(first.predict_array, IMAGE)
        try:
            assert begun.wait(30)
            with pytest.raises(OverloadedError, match="try again in a moment"):
                second.predict_array(IMAGE)
            refused = httpx.post(url + "/predict", content=png(), headers={"content-type": "image/png"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        finally:
            release.set()
        expected = pending.result()
        assert second.predict_array(IMAGE).index == expected.index


def begin_upload(url):
    """A connection with the beginning of a body, which then stalls."""
    url = httpx.URL(url)
    connection = socket.create_connection((url.host, url.port), timeout=30)
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    connection.sendall(head.encode() + bytes(100))
    return connection


def test_uploads_that_stall_take_no_place_and_are_told_so(serve, predictor, monkeypatch):
    monkeypatch.setattr(http, "WORKERS", 1)
    monkeypatch.setattr(http, "MAX_REQUESTS", 1)
    url = serve()
    with begin_upload(url), begin_upload(url), Client(url) as client:
        assert client.predict_array(IMAGE).index == predictor.predict(IMAGE[None]).indices[0]
    monkeypatch.setattr(upload, "BODY_S", 0.2)
    for stalled in [begin_upload(url), begin_upload(url)]:
        with stalled, stalled.makefile("rb") as answer:
            told = answer.read().decode()  # to the end of the connection
        assert told.startswith("HTTP/1.1 408 ")
        assert '"code":"slow-upload"' in told
        assert "did not arrive within 0.2 s" in told


def test_absence_of_devices_is_told_apart_from_overload(serve, bundle):
    headers = {"content-type": "image/png"}
    url = serve(Failing(bundle, UnavailableError("nobody there")))
    response = httpx.post(url + "/predict", content=png(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize("announced", [1_000, 30_000_000], ids=["accepted", "refused"])
def test_a_client_that_hangs_up_in_mid_body_is_no_defect(serve, caplog, announced):
    url = httpx.URL(serve())
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {announced}\r\n\r\n"
        connection.sendall(head.encode() + bytes(100))
    with Client(str(url)) as client:
        for _ in range(3):
            client.predict_array(IMAGE)
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_refused_body_is_read_to_its_end_so_that_the_refusal_arrives(serve):
    response = httpx.post(serve() + "/predict", content=bytes(50_000_000), headers={"content-type": "image/png"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too-large")


def test_a_large_form_upload_never_touches_the_disk(serve, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="PNG")
    assert len(buffer.getvalue()) > 2_000_000
    url = serve() + "/predict"
    whole = httpx.post(url, content=buffer.getvalue(), headers={"content-type": "image/png"}, timeout=60)
    response = httpx.post(url, files={"file": ("noise.png", buffer.getvalue(), "image/png")}, timeout=60)
    assert response.status_code == whole.status_code == 200
    assert response.json()["top"] == whole.json()["top"]


def test_openapi_describes_every_body_and_answer(serve):
    api = httpx.get(serve() + "/openapi.json").json()
    post = api["paths"]["/predict"]["post"]
    assert set(post["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/x-npy"}
    assert "[3, 16, 16]" in str(post["requestBody"])
    assert {"Predicted", "PredictedBatch", "ErrorAnswer", "FleetAnswer", "HealthAnswer"} <= set(
        api["components"]["schemas"]
    )


def test_the_documentation_needs_nothing_from_elsewhere(serve):
    url = serve()
    page = httpx.get(url + "/docs")
    assert page.status_code == 200
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) >= 3
    for file in files:
        assert file.startswith("/")
        assert httpx.get(url + file).status_code == 200


def test_equal_scores_are_ordered_by_class():
    prediction = Prediction(
        logits=np.zeros((1, 7), dtype=np.float32), classes=tuple("abcdefg"), missing=(), timings=NO_TIME
    )
    (answer,) = prediction.images
    assert [score.label for score in answer.top] == list("abcde")
    assert answer.index == prediction.indices[0]


def test_fewer_classes_than_five():
    prediction = Prediction(
        logits=np.array([[0.0, 9.0]], dtype=np.float32), classes=("no", "yes"), missing=(), timings=NO_TIME
    )
    (answer,) = prediction.images
    assert [score.label for score in answer.top] == ["yes", "no"]


@pytest.mark.parametrize(
    ("devices", "expected", "missing"),
    [
        ((status("a", (0,)), status("b", (1,))), "ready", ()),
        ((status("a", (0, 1)), status("b", (), alive=False)), "ready", ()),
        ((status("a", (0,)), status("b", (1,), alive=False)), "degraded", (1,)),
        ((status("a", (), planned=(0,)), status("b", (1,))), "degraded", (0,)),
        ((status("a", (), alive=False), status("b", ())), "not-ready", (0, 1)),
        ((), "not-ready", (0, 1)),
    ],
)
def test_health(bundle, devices, expected, missing):
    answer = health_of(bundle.manifest, devices)
    assert (answer.status, answer.missing, answer.submodels) == (expected, missing, 2)


def test_fleet_tells_what_is_wrong_with_a_device(bundle):
    device = status("a", (), planned=(0,), problem="too little memory")
    (answer,) = fleet_of(bundle.manifest, (device,)).devices
    assert (answer.name, answer.online, answer.planned, answer.problem) == ("a", True, (0,), "too little memory")
    assert (answer.memory_bytes, answer.memory_limit_bytes) == (5, 10)


def test_fleet_counts_devices_that_nobody_knows_and_names_some(bundle):
    strange = [status(f"x{i:03}", (), in_fleet=False, state="loading") for i in range(50)]
    answer = fleet_of(bundle.manifest, (status("dev-1", (0,)), *strange))
    assert [device.name for device in answer.devices] == ["dev-1"]
    assert len(answer.strangers) == 20
    assert answer.strangers_count == 50


def test_a_degraded_answer_says_which_classes_it_touches(serve, bundle):
    class Degraded(OneProcess):
        def predict(self, images, *, since=None):
            return self.run(images, absent=[1])

    with Client(serve(Degraded(bundle))) as client:
        answer = client.predict_array(IMAGE)
        batch = client.predict_batch(np.stack([IMAGE, IMAGE]))
    assert answer.degraded
    assert answer.missing == batch.missing == (1,)
    assert answer.missing_classes == batch.missing_classes == ("class-1", "class-3", "class-5")


def test_an_image_file_and_its_pixels_get_the_same_answer(serve, bundle):
    with Client(serve()) as client:
        by_file = client.predict(png())
        by_array = client.predict_array(decode_image(png(), bundle.manifest.preprocessing))
    assert by_file.top == by_array.top
