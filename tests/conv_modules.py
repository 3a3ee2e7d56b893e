"""Whether a convolutional network is what its architecture says."""

from __future__ import annotations


def assert_as_described(model):
    """Every path of the architecture is a module of its widths."""
    modules = dict(model.named_modules())
    for conv in model.architecture.convs:
        wanted = (model.architecture.filters(conv), model.architecture.inputs(conv), conv.kernel, conv.kernel)
        assert tuple(modules[conv.conv].weight.shape) == wanted, conv.conv
        assert len(modules[conv.norm].weight) == wanted[0], conv.norm
