"""Labels of a bundle that depend on their neighbours in a batch, of so many real images.

    python benchmarks/batch_answers.py parts-bundle --data imagefolder:parts --images 10000

Each image is answered alone and in batches, whose images are drawn at random. The last column is what ONNX Runtime
gives where a batch is handed to it as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edvit.bundle import Bundle, read_bundle
from edvit.inputs.datasets import read_split
from edvit.runtime.engine.fusion import FusionEngine
from edvit.runtime.engine.session import open_session
from edvit.runtime.predictor import LocalPredictor

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bundle = read_bundle(args.bundle)
    images = some_images(args.data, bundle, args.images, args.seed)
    predictor = LocalPredictor(bundle)
    alone = np.concatenate([predictor.run(image[None]).logits for image in images])
    print(f"{args.bundle.name}: {len(images):,} images, seed {args.seed}, batches of {BATCH}")
    report("as it answers", in_batches(lambda part: predictor.run(part).logits, images), alone)
    report("batches as they are", in_batches(as_they_are(bundle), images), alone)


def some_images(data: str, bundle: Bundle, count: int, seed: int) -> Images:
    """Images of the test split, then of the training split, in random order."""
    how = bundle.manifest.preprocessing
    found: list[Images] = []
    for split in ("test", "train"):
        source = read_split(data, split, None)
        chosen = np.random.default_rng(seed).permutation(len(source))[: count - len(found)]
        found += [source.prepared(int(index), how) for index in chosen]
    return np.stack(found)[np.random.default_rng(seed).permutation(len(found))]


def as_they_are(bundle: Bundle) -> Callable[[Images], Floats]:
    """Features of a batch as ONNX Runtime gives them, and the fusion of them."""
    manifest = bundle.manifest
    sessions = {part.id: open_session(bundle.model_path(part.model), threads=1) for part in manifest.submodels}
    fusion = FusionEngine(bundle.model_path(manifest.fusion.model), manifest)

    def answer(images: Images) -> Floats:
        features = {i: session.run_together(None, {"image": images})[0] for i, session in sessions.items()}
        return fusion.run(features, len(images))

    return answer


def in_batches(answer: Callable[[Images], Floats], images: Images) -> Floats:
    return np.concatenate([answer(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def report(name: str, found: Floats, alone: Floats) -> None:
    differ = int((found.argmax(axis=1) != alone.argmax(axis=1)).sum())
    print(f"{name:20} {differ:,} labels differ, logits by at most {np.abs(found - alone).max():.2g}")


if __name__ == "__main__":
    main()
