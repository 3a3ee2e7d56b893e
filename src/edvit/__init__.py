"""edvit: split a Vision Transformer into small class-specific models that run in parallel on edge devices."""

__version__ = "0.1.0"
