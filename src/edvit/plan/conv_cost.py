"""Parameters, operations and activations of a convolutional network, counted from its shape alone.

A spiking network is counted over all its time steps, as if it were dense.
"""

from __future__ import annotations

from edvit.shape.conv import ConvArchitecture


def conv_params(architecture: ConvArchitecture) -> int:
    """Number of parameters, equal to the torch model's; two of each filter are its normalisation's."""
    total = (architecture.feature_dim + 1) * architecture.classes
    for conv in architecture.convs:
        filters = architecture.filters(conv)
        total += filters * (conv.kernel**2 * architecture.inputs(conv) + 2 + conv.bias)
    return total


def conv_flops(architecture: ConvArchitecture) -> int:
    """Floating-point operations of convolutions and head for one image, a multiply-add as two.

    Of a spiking network all but the first convolution, which reads the image itself, run once a time step.
    """
    total = 2 * architecture.feature_dim * architecture.classes
    for conv in architecture.convs:
        steps = 1 if conv.reads is None else architecture.time_steps
        weights = conv.kernel**2 * architecture.inputs(conv) * architecture.filters(conv)
        total += 2 * weights * conv.size.pixels * steps
    return total


def conv_activations(architecture: ConvArchitecture) -> int:
    """Numbers in the largest set of activations that live at once, less the image as it came.

    The maximum over the convolutions of what one reads and what it writes, before and after its activation; of a
    spiking network for all time steps, as its exported graph runs layer by layer.
    """
    pixels = architecture.channels * architecture.image_size.pixels
    largest = 2 * pixels
    for conv in architecture.convs:
        written = architecture.filters(conv) * conv.size.pixels * architecture.time_steps
        read = pixels if conv.reads is None else architecture.inputs(conv) * conv.size.pixels * architecture.time_steps
        largest = max(largest, read + 2 * written)
    return largest
