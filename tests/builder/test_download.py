import hashlib
import http.server
import io
import sys
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
import torchvision

from edvit.builder.download import download
from edvit.errors import ConfigError, DataError, MissingExtraError
from edvit.inputs.datasets import read_split
from named_sets import TEST, TRAIN, trust

CIFAR = torchvision.datasets.CIFAR10


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The folder of a web site with a small CIFAR-10 archive; torchvision is told of its address and checksums."""
    folder = tmp_path / "site"
    folder.mkdir()
    sums = {}
    with tarfile.open(folder / CIFAR.filename, "w:gz") as archive:
        for name in (*TRAIN, *TEST, "batches.meta"):
            content = pickled({"label_names": list("abcdefghij")} if name == "batches.meta" else batch())
            sums[name] = hashlib.md5(content).hexdigest()
            member = tarfile.TarInfo(f"{CIFAR.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(CIFAR, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR.filename}")
        monkeypatch.setattr(CIFAR, "tgz_md5", hashlib.md5((folder / CIFAR.filename).read_bytes()).hexdigest())
        trust(monkeypatch, sums)
        yield folder
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def pickled(value):
    import pickle

    return pickle.dumps(value, protocol=2)


def batch():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": list(range(10))}


def test_what_is_downloaded_is_read(site, tmp_path):
    download("cifar10", tmp_path / "data")
    assert len(read_split("cifar10", "train", tmp_path / "data")) == 50
    # A second time fetches nothing.
    (site / CIFAR.filename).unlink()
    download("cifar10", tmp_path / "data")


def test_a_wrong_checksum_is_one_line(site, tmp_path):
    with (site / CIFAR.filename).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"cannot be downloaded into .*corrupted.*try again"):
        download("cifar10", tmp_path / "data")


def test_without_a_network_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(CIFAR, "url", "http://127.0.0.1:9/nothing")
    with pytest.raises(DataError, match=r"cifar10 cannot be downloaded .*get its files by hand"):
        download("cifar10", tmp_path / "data")


def test_what_cannot_be_downloaded(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="digits cannot be downloaded; these can: cifar10"):
        download("digits", tmp_path)
    with pytest.raises(ConfigError, match="needs --data-root"):
        download("mnist", None)
    monkeypatch.setitem(sys.modules, "torchaudio.datasets", None)
    with pytest.raises(MissingExtraError, match="pip install torchaudio"):
        download("speech-commands", tmp_path)
