"""The contract between the two worlds: a folder with `manifest.json` and ONNX files, written once, read verified.

    bundle/
      manifest.json        what is inside, with the sha256 of every file
      submodel-0.onnx      image uint8 [batch, channels, height, width] -> feature float32 [batch, feature_dim]
      ...                  (submodel-0.q4 in four bits, see edvit.runtime.engine.four_bits)
      fusion.onnx          features float32 [batch, sum of feature_dim], present float32 [batch, submodels]
                           -> logits float32 [batch, classes]
      report.html          for people; not part of the contract

Stand-in features for absent sub-models are inside the fusion graph: `present` is 0 where a feature is missing,
and what the caller put in its place does not matter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edvit.digest import sha256_of
from edvit.errors import BundleError, ConfigError
from edvit.fleet import Fleet
from edvit.inputs.preprocess import Preprocessing
from edvit.shape.conv import FilterWidths
from edvit.shape.image import ImageSize
from edvit.shape.vit import Widths
from edvit.validation import first_problem

FORMAT = "edvit-bundle"
VERSIONS = (1, 2)
"""What is read. 2 is 1 with sub-models in four bits, which an edvit that reads 1 alone cannot open; a bundle without
them is written as 1."""
MANIFEST = "manifest.json"
UNKNOWN_BELOW = "unknown-below-"
"""Name of a metric, before a share of the validation images: the probability that the answers to so many stay below."""
_SUFFIXES = {".onnx", ".q4", ".json", ".html"}
"""Endings of the files in a bundle."""

SHA256_PATTERN = r"^[0-9a-f]{64}$"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


MOST_PATH_BYTES = 255
"""A file's path inside a bundle has so many bytes at most; file systems take no longer names."""


class ModelFile(_Strict):
    """One model's file of the bundle: ONNX, or a container in four bits (`edvit.runtime.engine.four_bits`)."""

    file: str
    """Path inside the bundle, `/`-separated, never absolute, no `..`."""
    sha256: str = Field(pattern=SHA256_PATTERN)
    bytes: int = Field(gt=0)


class BaseModelInfo(_Strict):
    """The base model that was split. Its weights are not in the bundle."""

    name: str
    image_size: ImageSize
    widths: Widths | FilterWidths
    params: int = Field(gt=0)
    flops: int = Field(gt=0)
    """Floating-point operations per image, a multiply-add as two."""
    bytes: int = Field(gt=0)
    """Size of its parameters in fp32."""
    weights_sha256: str = Field(pattern=SHA256_PATTERN)
    """Digest of the trained weights the sub-models were cut from."""


class SubModelInfo(_Strict):
    """One sub-model."""

    id: int = Field(ge=0)
    classes: tuple[int, ...] = Field(min_length=1)
    """Its class group, as indices into `DataInfo.classes`."""
    widths: Widths | FilterWidths
    model: ModelFile
    params: int = Field(gt=0)
    flops: int = Field(gt=0)
    peak_memory_bytes: int = Field(gt=0)
    """Weights and activations for one image, by the plan's formula: what a device counts against its limit."""
    feature_dim: int = Field(gt=0)


class FusionInfo(_Strict):
    """The fusion MLP."""

    model: ModelFile
    submodels: tuple[int, ...] = Field(min_length=1)
    """Ids in the order in which the features are concatenated, and the columns of `present`."""
    params: int = Field(gt=0)


class DataInfo(_Strict):
    spec: str
    """The data spec that `--data` gave, e.g. `digits` or `imagefolder:parts`."""
    classes: tuple[str, ...] = Field(min_length=1)
    train: int = Field(ge=0)
    validation: int = Field(ge=0)
    test: int = Field(ge=0)


class PlacedSubModel(_Strict):
    """One line of the plan."""

    submodel: int
    device: str
    latency_s: float = Field(ge=0)
    """Predicted: compute on that device, without communication."""
    memory_bytes: int = Field(ge=0)
    energy_j: float = Field(ge=0)


class PlanInfo(_Strict):
    """Where each sub-model goes, with what was predicted."""

    fleet: Fleet
    placed: tuple[PlacedSubModel, ...] = Field(min_length=1)
    latency_s: float = Field(ge=0)
    """Predicted latency of the slowest device plus communication and fusion."""


class Metric(_Strict):
    """One measured figure. Timings do not belong here: they differ from run to run and would change the digest."""

    name: str
    value: float
    unit: str = "fraction"
    split: Literal["validation", "test"]


class Manifest(_Strict):
    format: Literal["edvit-bundle"] = "edvit-bundle"
    version: Literal[1, 2] = 1
    base: BaseModelInfo
    data: DataInfo
    preprocessing: Preprocessing
    submodels: tuple[SubModelInfo, ...] = Field(min_length=1)
    fusion: FusionInfo
    plan: PlanInfo
    metrics: tuple[Metric, ...] = ()
    flags: dict[str, Any] = {}
    """What the user typed."""
    config: dict[str, Any] = {}
    """The resolved configuration: every setting with its value."""
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        ids = [submodel.id for submodel in self.submodels]
        if ids != list(range(len(ids))):
            raise ValueError("sub-model ids must be 0, 1, 2, ...")
        if sorted(self.fusion.submodels) != ids:
            raise ValueError("the fusion does not take each sub-model once")
        if sorted(line.submodel for line in self.plan.placed) != ids:
            raise ValueError("the plan does not place each sub-model once")
        names = {device.name for device in self.plan.fleet.devices}
        for line in self.plan.placed:
            if line.device not in names:
                raise ValueError(f"the plan names a device that the fleet lacks: {line.device}")
        grouped = sorted(index for submodel in self.submodels for index in submodel.classes)
        if grouped != list(range(len(self.data.classes))):
            raise ValueError("the class groups are not a partition of the classes")
        return self

    def submodel(self, submodel_id: int) -> SubModelInfo:
        return self.submodels[submodel_id]

    def classes_of(self, submodels: Iterable[int]) -> tuple[str, ...]:
        """Names of the classes in the groups of these sub-models, in the order of the classes' indices."""
        indices = sorted(index for submodel in submodels for index in self.submodels[submodel].classes)
        return tuple(self.data.classes[index] for index in indices)

    def metric(self, name: str, split: str = "test") -> float | None:
        """Value of a metric, None where it was not measured."""
        return next((m.value for m in self.metrics if m.name == name and m.split == split), None)

    def unknown_below(self, share: float) -> float:
        """The probability below which the answers to this share of the validation images were.

        Raises:
            ConfigError: the bundle has no such figure.
        """
        known = {
            float(metric.name.removeprefix(UNKNOWN_BELOW)): metric.value
            for metric in self.metrics
            if metric.name.startswith(UNKNOWN_BELOW)
        }
        if not known:
            raise ConfigError("the bundle was built by an edvit that did not calibrate: build it again")
        if share not in known:
            shares = ", ".join(f"{one:g}" for one in sorted(known))
            raise ConfigError(f"the bundle has no probability for a share of {share:g}, only for {shares}")
        return known[share]

    def files(self) -> tuple[ModelFile, ...]:
        return (*(submodel.model for submodel in self.submodels), self.fusion.model)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest
    digest: str
    """sha256 of manifest.json: it covers every file, since the manifest names their digests."""

    def model_path(self, model: ModelFile) -> Path:
        return self.path / model.file


def model_file(path: Path) -> ModelFile:
    """Describe a file that lies at the top of a bundle folder."""
    return ModelFile(file=path.name, sha256=sha256_of(path), bytes=path.stat().st_size)


def read_bundle(path: Path | str) -> Bundle:
    """Read and verify a bundle: schema, version, every path and every digest, before anything is loaded.

    Raises:
        BundleError: anything is missing, altered, of an unknown version, or points outside the folder.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder; a bundle is the folder that `edvit build -o` writes")
    try:
        text = manifest_path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path}: no {MANIFEST}, so this is no bundle (or its build did not finish)") from None
    except OSError as error:
        raise BundleError(f"{manifest_path}: cannot be read ({type(error).__name__})") from None
    manifest = parse_manifest(manifest_path, text)
    for model in manifest.files():
        _verify_file(path, model)
    return Bundle(path=path, manifest=manifest, digest=hashlib.sha256(text).hexdigest())


def parse_manifest(path: Path, text: bytes) -> Manifest:
    """The manifest that a text holds; `path` is for messages alone.

    Raises:
        BundleError: it is no manifest, of an unknown version, or contradicts itself.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise BundleError(f"{path}: not valid JSON; build the bundle again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise BundleError(f"{path}: not the manifest of an edvit bundle")
    version = values.get("version")
    if type(version) is not int or version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise BundleError(
            f"{path}: bundle version {version!r} is unknown to this edvit (it reads {known}); "
            "use the edvit that built it, or build it again"
        )
    try:
        # Not `model_validate(values)`: only in JSON mode may an array stand for a tuple under strict fields.
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{path}: {first_problem(error)}") from None


def place_of(root: Path, model: ModelFile) -> Path:
    """Where a file of the bundle lies in the folder `root`. Raises BundleError for a path that leads out of it."""
    relative = PurePosixPath(model.file)
    if (
        relative.is_absolute()
        or ".." in relative.parts
        or "\\" in model.file
        or not relative.parts
        or not _is_name(model.file)
    ):
        raise BundleError(f"{root / MANIFEST}: unsafe path {model.file!r}; do not use this bundle")
    return root / relative


def _is_name(file: str) -> bool:
    """Whether a file system takes it."""
    return len(file.encode("utf-8", "replace")) <= MOST_PATH_BYTES and file.isprintable()


def _verify_file(root: Path, model: ModelFile) -> None:
    path = place_of(root, model)
    if not path.is_file():
        raise BundleError(f"{path}: missing; copy the whole bundle folder again")
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path}: a link out of the bundle; do not use this bundle")
    if path.stat().st_size != model.bytes or sha256_of(path) != model.sha256:
        raise BundleError(f"{path}: altered or damaged (its sha256 is not the manifest's); copy the bundle again")


def check_target(target: Path) -> Path:
    """Whether a bundle may be written there: nothing, an empty folder or a bundle is in the way; the absolute path.

    Raises:
        BundleError: `target` exists and is no bundle, or nothing can be written beside it.
    """
    target = target.resolve()
    with _writing(target):
        if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise BundleError(f"{target}: exists and is no bundle; choose another -o, or move it away")
        there = next(folder for folder in target.parents if folder.exists())
        Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=there)).rmdir()
    return target


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise BundleError(f"{target}: cannot be written ({why}); choose another -o") from None


def write_bundle(target: Path, fill: Callable[[Path], Manifest]) -> Bundle:
    """Write a bundle so that `target` is either whole or not there.

    `fill` writes the model files into the folder it is given and returns the manifest. An existing bundle at
    `target` is replaced only after the new one is complete and verified; anything else there is never removed.

    Raises:
        BundleError: `target` exists and is no bundle, it cannot be written, or what was written does not verify.
    """
    target = check_target(target)
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        scratch.chmod(0o755)
        manifest = fill(scratch)
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        (scratch / MANIFEST).write_text(text, encoding="utf-8")
        for path in scratch.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        read_bundle(scratch)
        with _writing(target):
            _replace(target, scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return read_bundle(target)


def clear_leftovers(target: Path) -> None:
    """Remove what a killed `write_bundle` left beside a bundle that is there; nothing else of such a name."""
    for folder in target.parent.glob(f".{target.name}-*"):
        made_here = re.fullmatch(r"(old-)?\w{8}", folder.name.removeprefix(f".{target.name}-"))
        if made_here and all(path.is_dir() or path.suffix in _SUFFIXES for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)


def _replace(target: Path, scratch: Path) -> None:
    """Rename `scratch` to `target`; what is there is removed afterwards, or is back in its place where that fails."""
    if not target.exists():
        scratch.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    old = aside / "bundle"
    try:
        target.rename(old)
        scratch.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        if not old.exists():
            aside.rmdir()
        raise
    shutil.rmtree(aside)
