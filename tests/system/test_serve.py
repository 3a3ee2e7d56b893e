"""`edvit serve --local` as a user runs it: real processes, real Zenoh, real HTTP."""

import io
import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from edvit.errors import EdvitError
from edvit.fleet import Device, Fleet
from edvit.inputs.preprocess import decode_image
from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.http.client import Client
from edvit.runtime.predictor import LocalPredictor
from serving import EDVIT, alive, run, serving, wait_for
from tiny_bundle import write_tiny_bundle

CLASSES = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("serve") / "bundle", submodels=3, classes=CLASSES)


@pytest.fixture(scope="module")
def local(bundle):
    return LocalPredictor(bundle)


@pytest.fixture(scope="module")
def served(bundle):
    with serving(bundle.path, "--local") as running:
        yield running


@pytest.fixture(scope="module")
def images(bundle):
    """Image files of several formats and sizes."""
    rng = np.random.default_rng(0)
    files = []
    for i, form in enumerate(["PNG", "JPEG", "BMP", "WEBP"] * 5):
        pixels = rng.integers(0, 256, (10 + i, 30 - i, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=form)
        files.append(buffer.getvalue())
    return files


def png(width=8, height=8):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(buffer, format="PNG")
    return buffer.getvalue()


# --- right answers -----------------------------------------------------------------------------------------


def test_every_answer_over_the_network_is_the_one_of_a_single_process(served, bundle, local, images):
    how = bundle.manifest.preprocessing
    with Client(served.url) as client:
        for data in images:
            array = decode_image(data, how)
            expected = local.predict(array[None])
            for answer in (client.predict(data), client.predict_array(array)):
                assert answer.index == expected.indices[0]
                assert answer.label == bundle.manifest.data.classes[answer.index]
                assert answer.probability == pytest.approx(float(expected.probabilities[0].max()), abs=1e-6)
                assert not answer.degraded
                assert answer.missing == ()
                assert [score.index for score in answer.top] == np.argsort(-expected.probabilities[0])[:5].tolist()


def test_a_batch_is_answered_in_order(served, bundle, local, images):
    batch = np.stack([decode_image(data, bundle.manifest.preprocessing) for data in images])
    with Client(served.url) as client:
        answer = client.predict_batch(batch)
    assert [one.index for one in answer.predictions] == local.predict(batch).indices.tolist()


def test_images_may_cross_the_network_encoded(bundle, local, images):
    batch = np.stack([decode_image(data, bundle.manifest.preprocessing) for data in images])
    with serving(bundle.path, "--local", "--image-encoding", "webp") as running, Client(running.url) as client:
        answer = client.predict_batch(batch)
    assert [one.index for one in answer.predictions] == local.predict(batch).indices.tolist()
    assert not answer.degraded


def test_a_form_upload_as_curl_sends_it(served, local, bundle, images):
    response = httpx.post(f"{served.url}/predict", files={"file": ("x.png", images[0], "image/png")})
    expected = local.predict(decode_image(images[0], bundle.manifest.preprocessing)[None])
    assert response.json()["index"] == expected.indices[0]


def test_health_and_fleet(served, bundle):
    with Client(served.url) as client:
        assert client.health().status == "ready"
        fleet = client.fleet()
    assert [(device.name, device.online, device.submodels) for device in fleet.devices] == [
        ("dev-1", True, (0,)),
        ("dev-2", True, (1,)),
        ("dev-3", True, (2,)),
    ]
    assert fleet.classes == bundle.manifest.data.classes


def test_predict_command(served, tmp_path, images):
    (tmp_path / "a.png").write_bytes(images[0])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "b.jpg").write_bytes(images[1])
    done = run(
        "predict", served.url, tmp_path / "a.png", tmp_path / "notes.txt", tmp_path / "gone.png", tmp_path / "b.jpg"
    )
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stdout.splitlines()] == [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    assert len(done.stderr.splitlines()) == 2
    assert "notes.txt: not an image file" in done.stderr

    done = run("predict", served.url, tmp_path / "a.png", tmp_path / "notes.txt", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["label"].startswith("class-")
    assert second["error"]["code"] == "unsupported-media"
    assert run("predict", served.url, tmp_path / "a.png").returncode == 0


def test_evaluate_command_agrees_between_gateway_and_bundle(served, bundle, tmp_path, images):
    for i, data in enumerate(images):
        folder = tmp_path / "test" / f"class-{i % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        suffix = Image.open(io.BytesIO(data)).format.lower()
        (folder / f"{i}.{suffix}").write_bytes(data)
    results = []
    for target in (served.url, bundle.path):
        done = run("evaluate", target, "--data", f"imagefolder:{tmp_path}", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        results.append(json.loads(done.stdout))
    over_http, here = results
    assert over_http["images"] == len(images)
    assert over_http["classes"] == here["classes"]
    assert over_http["accuracy"] == here["accuracy"]
    assert (over_http["degraded"], here["degraded"]) == (0, 0)
    text = run("evaluate", bundle.path, "--data", f"imagefolder:{tmp_path}", "--limit", 6)
    assert "of 6 images" in text.stdout


# --- bad input over HTTP -----------------------------------------------------------------------------------

IMAGE = np.zeros((3, 16, 16), dtype=np.uint8)


def huge_png():
    """40,000 x 40,000 pixels in a few bytes."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(5001) * 40_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pickled_npy():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


BAD = {
    "truncated image": (png(64, 64)[:100], "image/png", 400),
    "huge image": (huge_png(), "image/png", 413),
    "text as image": (b"hello", "image/png", 415),
    "text": (b"hello", "text/plain", 415),
    "no type": (b"hello", None, 415),
    "empty": (b"", "image/png", 400),
    "empty, no type": (b"", None, 400),
    "30 MB": (bytes(30_000_000), "image/png", 413),
    "shape": (to_npy(IMAGE[:, :8]), NPY, 400),
    "dtype": (to_npy(IMAGE.astype(np.float32)), NPY, 400),
    "pickled": (pickled_npy(), NPY, 400),
    "array cut": (to_npy(IMAGE)[:-9], NPY, 400),
    "form without boundary": (b"x", "multipart/form-data", 400),
    "broken form": (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 400),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_4xx_in_one_line_and_the_server_lives_on(served, name):
    data, media_type, status = BAD[name]
    headers = {"content-type": media_type} if media_type else {}
    response = httpx.post(f"{served.url}/predict", content=data, headers=headers)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert error["code"]
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    with Client(served.url) as client:
        assert not client.predict(png()).degraded


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"file": ("notes.txt", b"hello", "text/plain")}, 415),
        ({"file": ("empty.png", b"", "image/png")}, 400),
        ({"picture": ("x.png", png(), "image/png")}, 400),
        ({"file": ("big.png", bytes(21_000_000), "image/png")}, 413),
    ],
    ids=["text", "empty", "other-field", "big"],
)
def test_bad_form_uploads(served, files, status):
    response = httpx.post(f"{served.url}/predict", files=files)
    assert response.status_code == status
    assert set(response.json()) == {"error"}


def test_a_body_without_a_length_is_cut_off_too(served):
    def chunks():
        for _ in range(30):
            yield bytes(1_000_000)

    response = httpx.post(f"{served.url}/predict", content=chunks(), headers={"content-type": "image/png"})
    assert response.status_code == 413


def test_other_addresses_and_methods(served):
    assert httpx.get(f"{served.url}/nothing").json()["error"]["code"] == "not-found"
    response = httpx.get(f"{served.url}/predict")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method-not-allowed")
    assert "/predict" in httpx.get(f"{served.url}/openapi.json").json()["paths"]


def test_bytes_that_are_no_http(served):
    port = httpx.URL(served.url).port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert b"400" in connection.recv(1000)
    with Client(served.url) as client:
        assert client.health().status == "ready"


# --- ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_process(bundle, number):
    with serving(bundle.path, "--local") as served:
        assert set(served.devices) == {"dev-1", "dev-2", "dev-3"}
        code, _ = served.stop(number)
        assert code == 0
        assert served.left_over() == []


def test_no_device_outlives_a_gateway_that_was_killed(bundle):
    with serving(bundle.path, "--local") as served:
        served.stop(signal.SIGKILL)
        assert wait_for(lambda: not served.left_over())


def test_a_lost_device_makes_answers_degraded_not_errors(bundle, local):
    with serving(bundle.path, "--local", "--deadline-s", "1") as served, Client(served.url) as client:
        array = np.full((3, 16, 16), 90, dtype=np.uint8)
        whole = client.predict_array(array)
        served.devices["dev-2"].kill()
        answer = client.predict_array(array)
        assert answer.degraded
        assert answer.missing == (1,)
        assert wait_for(lambda: client.health().status == "degraded")
        assert client.health().missing == (1,)
        assert [d.online for d in client.fleet().devices] == [True, False, True]
        assert not whole.degraded

        for name in ("dev-1", "dev-3"):
            served.devices[name].kill()
        assert wait_for(lambda: client.health().status == "not-ready")
        with pytest.raises(EdvitError) as caught:
            client.predict_array(array)
        assert caught.value.http_status in (503, 504)
        assert served.process.poll() is None


def test_a_device_killed_in_mid_request_costs_its_feature_and_no_waiting(bundle):
    array = np.full((3, 16, 16), 90, dtype=np.uint8)
    # With a deadline of ten minutes, only the death of the device can end the request.
    with serving(bundle.path, "--local", "--deadline-s", "600") as served:
        device = served.devices["dev-3"]
        device.suspend()
        with ThreadPoolExecutor(1) as pool, Client(served.url, timeout_s=60) as client:
            pending = pool.submit(client.predict_array, array)
            assert not wait_for(pending.done, within_s=0.5)
            device.kill()
            assert pending.result(60).missing == (2,)


def test_a_device_that_hangs_is_waited_for_until_the_deadline(bundle):
    array = np.full((3, 16, 16), 90, dtype=np.uint8)
    with serving(bundle.path, "--local", "--deadline-s", "0.3") as served, Client(served.url) as client:
        served.devices["dev-1"].suspend()
        assert client.predict_array(array).missing == (0,)
        served.devices["dev-1"].resume()
        assert wait_for(lambda: not client.predict_array(array).degraded)


@pytest.mark.parametrize("delay_s", [0.2, 0.5, 0.8, 1.1, 1.4])
def test_a_signal_while_it_starts_leaves_nothing(tmp_path, delay_s):
    name = f"f{os.getpid()}-{delay_s}"
    devices = tuple(Device.model_validate({"name": f"d{i}"}) for i in range(2))
    bundle = write_tiny_bundle(tmp_path / "bundle", fleet=Fleet(name=name, devices=devices))
    command = [*EDVIT, "serve", str(bundle.path), "--local", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(delay_s)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert "Traceback" not in said
    assert wait_for(lambda: not [p for p in psutil.process_iter(["cmdline"]) if name in (p.info["cmdline"] or [])])


def test_a_port_in_use_starts_nothing(bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        before = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
        done = run("serve", bundle.path, "--local", "--port", taken.getsockname()[1])
        assert done.returncode == 2
        assert done.stderr.startswith("edvit: ")
        assert "in use" in done.stderr
        assert done.stderr.count("\n") == 1
        after = psutil.Process(os.getpid()).children(recursive=True)
        assert [child for child in after if child.pid not in before and alive(child)] == []
