"""`python run_submodel.py MODEL IMAGES FEATURE_DIM OUT`: features of an array of images, as a device makes them."""

import sys
from pathlib import Path

import numpy as np

from edvit.runtime.engine.submodel import SubModelEngine

model, images, feature_dim, out = sys.argv[1:]
pixels = np.load(images)
_, channels, *size = pixels.shape
engine = SubModelEngine(Path(model), channels=channels, image_size=size, feature_dim=int(feature_dim))
np.save(out, engine.run_in_chunks(pixels))
