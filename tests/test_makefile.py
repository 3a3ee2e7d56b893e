"""What commands make in the checkout is ignored by git and removed by `make clean`."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("folder", ["edvit-demo", "edvit-demo-work", ".venv-lean", ".venv-wheel", "dist", ".pi4"])
def test_every_folder_is_known(folder):
    ignored = (ROOT / ".gitignore").read_text().split()
    assert folder in [line.strip("/") for line in ignored]
    makefile = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    clean = makefile.partition("\nclean:\n")[2].partition("\n\n")[0]
    assert folder in clean.split()
