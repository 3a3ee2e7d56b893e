"""Imports every command module, which registers its commands on `edvit.cli.app`, in the order of `--help`."""

from __future__ import annotations

from edvit.cli import app, build, demo, device, evaluate, inspect, plan, predict, serve  # noqa: F401
