"""Registers every command on `edvit.cli.app`."""

from __future__ import annotations

from edvit.cli import app
from edvit.cli.build import build
from edvit.cli.demo import demo
from edvit.cli.deploy import deploy
from edvit.cli.device import device
from edvit.cli.doctor import doctor
from edvit.cli.evaluate import evaluate
from edvit.cli.inspect import inspect
from edvit.cli.keys import keys
from edvit.cli.plan import plan
from edvit.cli.predict import predict
from edvit.cli.serve import serve

__all__ = ["app"]

for command in (build, demo, deploy, device, doctor, evaluate, inspect, plan, predict, serve):
    app.command(command)
app.command(keys)
