"""Settings of a comparison that is quick to make."""

from __future__ import annotations

from benchmarks.compare.workshop import Settings

SETTINGS = Settings(
    data="digits", data_root=None, devices=2, model=None, weights=None, image_size=None, convnet="vgg5",
    spiking="spiking_vgg5", conv_size=16, compact="vgg5", compact_weights=None, budget_mb=None, base_epochs=1,
    conv_epochs=1, recover_epochs=0, views=1, augment=None, device="cpu", workers=1, image_encoding="raw",
)  # fmt: skip
