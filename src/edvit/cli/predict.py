"""`edvit predict`: ask a gateway about image or sound files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edvit.cli import app

if TYPE_CHECKING:
    from edvit.runtime.http.answers import Predicted
    from edvit.runtime.http.client import Client


@app.command()
def predict(
    url: str = typer.Argument(..., help="Address of a gateway, e.g. http://127.0.0.1:8080."),
    files: list[Path] = typer.Argument(..., help="Image files, or sound files where the model takes sounds."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per file and line."),
) -> None:
    """Classify image or sound files by a running gateway. A bad file stops no other; the exit code is then not 0."""
    from edvit.errors import EdvitError
    from edvit.runtime.http.client import Client

    width = max(len(str(path)) for path in files)
    exit_code = 0
    with Client(url) as client:
        for path in files:
            try:
                answer = ask(client, path)
            except EdvitError as error:
                typer.echo(failure_line(path, error, as_json), err=not as_json)
                exit_code = error.exit_code
            else:
                typer.echo(json_line(path, answer) if as_json else text_line(path, answer, width))
    raise typer.Exit(exit_code)


def ask(client: Client, path: Path) -> Predicted:
    """Raises DataError when the file cannot be read, and whatever the gateway answers."""
    from edvit.errors import DataError

    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    return client.predict(data)


def text_line(path: Path, answer: Predicted, width: int) -> str:
    """`cat.png   cat    98.1 %   12.3 ms`, with a note where the answer is degraded."""
    missing = ", ".join(map(str, answer.missing))
    note = f"   degraded: without sub-model {missing}" if answer.degraded else ""
    return f"{path!s:{width}}   {answer.label:16} {answer.probability:7.1%}   {answer.timings.total_ms:6.1f} ms{note}"


def json_line(path: Path, answer: Predicted) -> str:
    import json

    return json.dumps({"file": str(path), **answer.model_dump(mode="json")})


def failure_line(path: Path, error: Exception, as_json: bool) -> str:
    import json

    code = getattr(error, "code", "internal")
    if as_json:
        return json.dumps({"file": str(path), "error": {"code": code, "message": str(error)}})
    return f"edvit: {path}: {error}"
