"""The shape of a model of either kind, a Vision Transformer or a convolutional network."""

from __future__ import annotations

from typing import TypeAlias

from edvit.shape.conv import ConvArchitecture
from edvit.shape.vit import Architecture

AnyArchitecture: TypeAlias = Architecture | ConvArchitecture
