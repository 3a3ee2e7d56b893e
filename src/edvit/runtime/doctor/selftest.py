"""ONNX Runtime against numpy on a tiny model, in a process of its own: `python -m edvit.runtime.doctor.selftest`.

A wheel that is built for another processor does not raise an error: it kills the process.
"""

from __future__ import annotations

import base64

MODEL = base64.b64decode(
    "CAgSBWVkdml0Ot4CChIKAXgKAXcSAnh3IgZNYXRNdWwKEQoCeHcKAWISA3h3YiIDQWRkCicKA3h3YhIBeSIHU29mdG1heCoUCgRh"
    "eGlzGP///////////wGgAQIKJgoBeBICeHESAnhzEgJ4eiIVRHluYW1pY1F1YW50aXplTGluZWFyCh8KAnhxCgJ3cQoCeHoSAnlx"
    "Ig1NYXRNdWxJbnRlZ2VyEghzZWxmdGVzdFoVCgF4EhAKDggBEgoKAxIBbgoDEgFrWhUKAXcSEAoOCAESCgoDEgFrCgMSAW1aEAoB"
    "YhILCgkIARIFCgMSAW1aFgoCd3ESEAoOCAISCgoDEgFrCgMSAW1iFQoBeRIQCg4IARIKCgMSAW4KAxIBbWIWCgJ4cRIQCg4IAhIK"
    "CgMSAW4KAxIBa2IMCgJ4cxIGCgQIARIAYgwKAnh6EgYKBAgCEgBiFgoCeXESEAoOCAYSCgoDEgFuCgMSAW1CBAoAEBE="
)
"""Opset 17: y = Softmax(x w + b); and with x quantised to (xq, xs, xz), as in int8 models, yq = (xq - xz) wq."""

TOLERANCE = 1e-5


def largest_difference() -> float:
    """Run the model; the largest difference of its probabilities from numpy's.

    Raises:
        ArithmeticError: the integers are not exactly numpy's.
    """
    import numpy as np
    import onnxruntime

    draw = np.random.default_rng(0)
    x, w, b = (draw.normal(size=shape).astype(np.float32) for shape in ((64, 96), (96, 33), (33,)))
    wq = draw.integers(0, 256, w.shape, dtype=np.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    y, xq, xs, xz, yq = session.run(None, {"x": x, "w": w, "b": b, "wq": wq})
    logits = x.astype(np.float64) @ w + b
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    # A value halfway between two steps may be rounded to either.
    steps = np.abs(x / xs + xz.astype(np.float32) - xq).max()
    exact = (xq.astype(np.int32) - int(xz)) @ wq.astype(np.int32)
    if steps > 0.501 or not np.array_equal(yq, exact):
        raise ArithmeticError("integers differ from numpy's")
    return float(np.abs(y - powers / powers.sum(axis=1, keepdims=True)).max())


if __name__ == "__main__":
    difference = largest_difference()
    print(difference)
    raise SystemExit(not difference <= TOLERANCE)
