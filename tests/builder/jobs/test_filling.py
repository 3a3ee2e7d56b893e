from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.filling import fill_arrays
from killing import KilledError, interrupted

anywhere = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS = 23


def filling(folder, written=None):
    """Fills two arrays and notes every seventh row; `written` collects the rows."""

    def work(batch=4, **more):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        note = {}

        def write(index, arrays):
            if written is not None:
                written.extend(index.tolist())
            arrays["a.npy"][index] = index[:, None] * np.arange(3.0)
            arrays["b.npy"][index] = -index
            note.update({int(row): f"row {row}" for row in index if row % 7 == 0})

        arrays = {"a.npy": (np.float32, (ROWS, 3)), "b.npy": (np.int64, (ROWS,))}
        fill_arrays(folder, arrays, ROWS, write, batch=batch, notes=(note,), **more)
        return {path.name: path.read_bytes() for path in folder.iterdir()}, note

    return work


@anywhere
@given(st.data(), st.integers(1, 6))
def test_arrays_that_were_being_filled_end_with_the_same_bytes(tmp_path_factory, data, batch):
    root = tmp_path_factory.mktemp("filling")
    (root / "kept").mkdir()
    step = data.draw(st.integers(1, -(-ROWS // batch) - 1))
    whole = filling(root / "whole")(batch)
    again, first = interrupted(lambda **more: filling(root / "again")(batch, **more), root / "kept", step)
    assert first == step * batch
    assert again == whole


def test_what_is_killed_while_its_result_is_kept_is_not_filled_again(tmp_path):
    kept, written = tmp_path / "kept", []
    kept.mkdir()
    whole = filling(tmp_path / "out", written)(checkpoint=Checkpoint(kept, "key"))
    assert len(written) == ROWS
    shutil.rmtree(tmp_path / "out")  # the scratch folder of a killed build is removed
    assert filling(tmp_path / "out", written)(checkpoint=Checkpoint(kept, "key")) == whole
    assert len(written) == ROWS


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_arrays_that_are_not_as_they_were_are_filled_anew(tmp_path, damage):
    kept, written = tmp_path / "kept", []
    kept.mkdir()
    whole = filling(tmp_path / "whole")()
    killed = filling(tmp_path / "out")

    def kill(done, total):
        if done > 8:
            raise KilledError

    with pytest.raises(KilledError):
        killed(checkpoint=Checkpoint(kept, "key", every_s=0), progress=kill)
    if damage == "gone":
        (kept / "a.npy").unlink()
    elif damage == "cut":
        (kept / "a.npy").write_bytes(b"")
    else:
        np.save(kept / "a.npy", np.zeros((ROWS, 2), dtype=np.float32))
    assert filling(tmp_path / "out", written)(checkpoint=Checkpoint(kept, "key")) == whole
    assert len(written) == ROWS
