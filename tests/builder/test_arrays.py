import errno
import resource
import subprocess
import sys

import numpy as np

from edvit.builder.arrays import create_array


def test_an_array_is_zeros_in_a_file(tmp_path):
    array = create_array(tmp_path / "a.npy", np.float16, (3, 5))
    assert not array.any()
    array[1] = 2
    array.flush()
    assert np.load(tmp_path / "a.npy").tolist() == [[0] * 5, [2] * 5, [0] * 5]
    # All of it is there, not a hole that has yet to find room.
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 30


def test_an_array_without_room_is_an_error_before_anything_is_written(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path; from edvit.builder.arrays import create_array\n"
        "try: create_array(Path(sys.argv[1]), np.uint8, (1_000_000,))\n"
        "except OSError as error: sys.exit(error.errno)"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.npy")], preexec_fn=limit, check=False)
    assert done.returncode == errno.EFBIG
