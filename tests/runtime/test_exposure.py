import pytest

from edvit.runtime.exposure import is_loopback, wanting_keys


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"])
def test_this_machine_alone(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "", "192.168.1.1", "gateway.local", "localhost.evil.com"])
def test_others_reach_it(host):
    assert not is_loopback(host)


def test_endpoints():
    own = ["tcp/127.0.0.1:1", "tcp/[::1]:1", "tcp/localhost:1"]
    network = ["tcp/0.0.0.0:7447", "tls/127.0.0.1:7447", "nonsense"]
    assert wanting_keys([*own, *network]) == network
