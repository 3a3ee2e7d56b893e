"""Imports everything that is installed beside edvit on a device, and has the compiled packages work.

Each step is printed before it is done, so that the last line names the package that a processor cannot run.
"""

import importlib
import importlib.metadata
import io


def step(what):
    print(what, flush=True)


def import_all():
    for module, names in sorted(importlib.metadata.packages_distributions().items()):
        if module.isidentifier():
            step(f"import {module}: {' '.join(f'{name} {importlib.metadata.version(name)}' for name in set(names))}")
            importlib.import_module(module)


def use_numpy():
    import numpy as np

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        matrix = rng.normal(size=(65, 65)).astype(dtype)
        assert np.isfinite(np.exp(-((matrix @ matrix) ** 2))).all()
    assert np.allclose(np.linalg.inv(matrix) @ matrix, np.eye(65))
    assert np.array_equal(np.sort(matrix.ravel()), np.sort(matrix.ravel()[::-1]))


def use_pillow():
    from PIL import Image

    image = Image.linear_gradient("L").convert("RGB")
    for form in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        image.save(file, form)
        assert Image.open(file).resize((97, 61), Image.Resampling.BICUBIC).size == (97, 61)


def use_cryptography():
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key = ec.generate_private_key(ec.SECP256R1())
    key.public_key().verify(key.sign(b"edvit", ec.ECDSA(hashes.SHA256())), b"edvit", ec.ECDSA(hashes.SHA256()))
    cipher = AESGCM(AESGCM.generate_key(256))
    assert cipher.decrypt(bytes(12), cipher.encrypt(bytes(12), b"edvit", None), None) == b"edvit"


def use_yaml():
    import yaml

    assert yaml.load("a: [1, 2]", yaml.CSafeLoader) == {"a": [1, 2]}


import_all()
for use in (use_numpy, use_pillow, use_cryptography, use_yaml):
    step(use.__name__.replace("_", " "))
    use()
step("done")
