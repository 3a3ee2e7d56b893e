"""Fetching a data set, by torchvision's and torchaudio's own downloaders: their addresses, their checksums."""

from __future__ import annotations

import importlib
from pathlib import Path
from urllib.error import URLError

from edvit.errors import ConfigError, DataError, MissingExtraError

DOWNLOADERS = {
    "cifar10": "torchvision.datasets.CIFAR10",
    "mnist": "torchvision.datasets.MNIST",
    "fashion-mnist": "torchvision.datasets.FashionMNIST",
    "caltech256": "torchvision.datasets.Caltech256",
    "speech-commands": "torchaudio.datasets.SPEECHCOMMANDS",
}
"""Not `gtzan`: its official archive is no longer online."""


def download(spec: str, root: Path | None) -> None:
    """Fetch and unpack what is not there yet, to where `edvit.inputs.datasets` looks for it.

    Raises:
        ConfigError: there is nothing to download for this data spec, or no folder for it.
        MissingExtraError: torchaudio is needed and not installed.
        DataError: no network, or what came has a wrong checksum.
    """
    if spec not in DOWNLOADERS:
        raise ConfigError(f"--download: {spec} cannot be downloaded; these can: {', '.join(DOWNLOADERS)}")
    if root is None:
        raise ConfigError("--download needs --data-root: the folder to put the files in")
    module, _, name = DOWNLOADERS[spec].rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError:
        package = module.partition(".")[0]
        raise MissingExtraError(f"downloading {spec} needs {package}: pip install {package}") from None
    try:
        root.mkdir(parents=True, exist_ok=True)
        kind(root, download=True)
    except URLError as error:
        raise DataError(f"{spec} cannot be downloaded ({error.reason}): get its files by hand, see the docs") from None
    except (RuntimeError, OSError, EOFError) as error:  # a wrong checksum, a damaged archive, no right to write
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{spec} cannot be downloaded into {root} ({reason}); remove what is there and try again"
        ) from None
