"""What is valid: names, and what a pydantic validation error says is not."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
"""Names become parts of Zenoh keys and of file names: no `/`, `*`, `$`, `?`, `#`."""


def first_problem(error: ValidationError, names: Mapping[str, str] | None = None) -> str:
    """The first problem of a pydantic validation error, in one line: `devices.0.memory_mb: ...`.

    Args:
        names: what the user knows a field as, where that is not its name.
    """
    # A list whose members are wrong counts as too short as well: that is no second mistake.
    problems = error.errors(include_url=False)
    problems = [problem for problem in problems if problem["type"] != "too_short"] or problems
    problem = problems[0]
    field, *inner = (str(part) for part in problem["loc"]) if problem["loc"] else ("",)
    where = names[field] if names and field in names else ".".join([field, *inner])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key"
    more = len(problems) - 1
    return (f"{where}: " if where else "") + message + (f" (and {more} more)" if more else "")
