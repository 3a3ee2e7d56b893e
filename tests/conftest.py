import fcntl
import os
import signal

import pytest

# These take a root of another processor: `make test-pi4` names the folder, and makes one.
collect_ignore = ["pi4"]

# A job that a shell starts in the background ignores Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """No example of hypothesis fails for being slow: the machine may be busy."""
    if config.pluginmanager.hasplugin("hypothesispytest"):  # `make lean` has none
        from hypothesis import settings

        settings.register_profile("busy", deadline=None)
        settings.load_profile("busy")


@pytest.fixture(scope="session")
def tiny_build(tmp_path_factory):
    """`tiny_build.TinyBuild`, built once for all pytest workers."""
    import torch

    from edvit.builder.pipeline import build
    from tiny_build import TinyBuild, tiny_config

    torch.set_num_threads(1)
    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "tiny-build"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Where another worker has built it, this skips every stage and writes the bundle alone.
        bundle, built = build(tiny_config(), tmp_path_factory.mktemp("tiny") / "bundle", work=shared / "work")
    return TinyBuild(bundle, built, shared / "work")
