"""Text as the value of a label."""

from __future__ import annotations


def label(text: str) -> str:
    """The text, with what UTF-8 cannot say replaced: one such name would make every scrape fail.

    Quotes, backslashes and line ends stay: prometheus_client escapes them when it writes.
    """
    return text.encode("utf-8", "replace").decode("utf-8")
