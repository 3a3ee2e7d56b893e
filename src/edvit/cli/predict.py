"""`edvit predict`: ask a gateway about image or sound files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edvit.cli import Json
from edvit.cli.access import AccessOptions
from edvit.errors import printable

if TYPE_CHECKING:
    from edvit.runtime.http.answers import Predicted
    from edvit.runtime.http.client import Client


def predict(
    url: Annotated[str, Parameter(help="Address of a gateway, e.g. http://127.0.0.1:8080.")],
    files: Annotated[tuple[Path, ...], Parameter(help="Image files, or sound files where the model takes sounds.")],
    /,
    *,
    access: AccessOptions = AccessOptions(),
    as_json: Annotated[Json, Parameter(help="Print one JSON object per file and line.")] = False,
) -> int:
    """Classify image or sound files by a running gateway. A bad file stops no other; the exit code is then not 0."""
    from edvit.errors import EdvitError

    width = max(len(printable(str(path))) for path in files)
    exit_code = 0
    with access.client(url) as client:
        for path in files:
            try:
                answer = ask(client, path)
            except EdvitError as error:
                print(failure_line(path, error, as_json), file=sys.stdout if as_json else sys.stderr)
                exit_code = error.exit_code
            else:
                print(json_line(path, answer) if as_json else text_line(path, answer, width))
    return exit_code


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
    file, label = printable(str(path)), printable(answer.label)
    return f"{file:{width}}   {label:16} {answer.probability:7.1%}   {answer.timings.total_ms:6.1f} ms{note}"


def json_line(path: Path, answer: Predicted) -> str:
    import json

    return json.dumps({"file": str(path), **answer.model_dump(mode="json")})


def failure_line(path: Path, error: Exception, as_json: bool) -> str:
    import json

    code = getattr(error, "code", "internal")
    if as_json:
        return json.dumps({"file": str(path), "error": {"code": code, "message": str(error)}})
    return f"edvit: {printable(str(path))}: {error}"
