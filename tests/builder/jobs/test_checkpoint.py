import errno
import resource

import pytest
import torch

from edvit.builder.jobs.checkpoint import Checkpoint


def test_a_full_disk_is_an_error_of_the_file_and_the_last_checkpoint_stays(tmp_path):
    """torch's writer would raise a RuntimeError of its own; a limit on the size of files stands for the disk."""
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.save({"value": torch.arange(10)}, 1, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            checkpoint.save({"value": torch.zeros(100_000)}, 2, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    state = checkpoint.load()
    assert state is not None
    assert state["value"].equal(torch.arange(10))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
