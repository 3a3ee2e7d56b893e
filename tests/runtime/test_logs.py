"""Lines of a log: what they have, and that nobody who puts text into one can forge another or steer a terminal."""

from __future__ import annotations

import errno
import io
import json
import logging
import re
import subprocess
import sys

import pytest

from edvit.runtime.logs import JsonLines, SeldomWithoutHandles, TextLines, event
from edvit.runtime.request import working_on

NASTY = "\x1b[31mred\r\n2026-01-01 INFO forged\u202e \u2028 \x9b31m \ud800"


@pytest.fixture
def lines():
    """Logs into a list, by the formatter that is given."""
    opened = []

    def start(formatter):
        stream = io.StringIO()
        log = logging.Logger("edvit.test", logging.DEBUG)
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        log.addHandler(handler)
        opened.append(stream)
        return log, lambda: stream.getvalue().splitlines()

    return start


def test_an_event_is_one_json_object_with_time_level_and_fields(lines):
    log, said = lines(JsonLines(device="pi-1"))
    event(log, logging.INFO, "inference", wire="0" * 16, submodels=[1, 2], seconds=0.25, problem=None)
    (line,) = said()
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "info",
        "event": "inference",
        "logger": "edvit.test",
        "device": "pi-1",
        "wire": "0" * 16,
        "submodels": [1, 2],
        "seconds": 0.25,
    }


def test_a_plain_message_is_an_event_too(lines):
    log, said = lines(JsonLines())
    log.warning("device %s is gone", "pi-1")
    assert json.loads(said()[0])["event"] == "device pi-1 is gone"


def test_a_field_does_not_replace_what_every_line_has(lines):
    log, said = lines(JsonLines())
    event(log, logging.INFO, "x", level="critical", time="never")
    found = json.loads(said()[0])
    assert found["level"] == "info"
    assert found["level_"] == "critical"
    assert found["time"] != "never"


@pytest.mark.parametrize("make", [JsonLines, TextLines])
def test_text_of_others_stays_in_its_line_and_steers_nothing(lines, make):
    log, said = lines(make())
    event(log, logging.INFO, NASTY, path=NASTY, names=[NASTY, "a b"])
    log.info("a message: %s", NASTY)
    assert len(said()) == 2
    assert all(line.isprintable() for line in said())
    assert all("forged" in line for line in said())


@pytest.mark.parametrize("make", [JsonLines, TextLines])
def test_an_error_with_text_of_others_forges_no_line(lines, make):
    log, said = lines(make())
    try:
        raise ValueError(NASTY)
    except ValueError:
        log.exception("failed")
    assert all(line.isprintable() for line in said())
    if make is JsonLines:
        assert "ValueError" in json.loads(said()[0])["traceback"]
        assert len(said()) == 1
    else:
        assert all(line.startswith("    ") for line in said()[1:])


def test_text_for_people(lines):
    log, said = lines(TextLines())
    event(log, logging.INFO, "request", path="/a b", status=200, seconds=0.012345678, missing=(), wire=["a", "b"])
    assert re.fullmatch(r'\S+ \S+ INFO request path="/a b" status=200 seconds=0.0123457 missing=- wire=a,b', said()[0])


def test_lines_name_the_request_that_is_worked_on(lines):
    log, said = lines(JsonLines())
    with working_on("camera-7"):
        log.info("inside")
    log.info("outside")
    assert [json.loads(line).get("request") for line in said()] == ["camera-7", None]


PROGRAM = """
import logging, sys, threading, warnings
from edvit.runtime.logs import write_logs
write_logs(sys.argv[1], device="pi-1")
logging.getLogger("a").info("told")
logging.getLogger("a").warning("warned")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("uncaught\\nforged")
"""


def test_a_program_that_logs_in_json_writes_nothing_else():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "json"], capture_output=True, text=True, timeout=120)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"].split("\n")[0] for line in found][:2] == ["told", "warned"]
    assert "UserWarning: old" in found[2]["event"]
    assert [line["traceback"].splitlines()[-1].split(":")[0] for line in found[3:]] == ["ZeroDivisionError", "forged"]
    assert {line["device"] for line in found} == {"pi-1"}


def test_text_is_quiet_below_warnings():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "text"], capture_output=True, text=True, timeout=120)
    assert "told" not in done.stderr
    assert " WARNING warned" in done.stderr


def test_malformed_forms_write_no_lines_of_their_own():
    program = """
from python_multipart.multipart import MultipartParser
from edvit.runtime.logs import write_logs
write_logs("json", "debug")
try:
    MultipartParser(b"x", {}).write(b"no form")
except ValueError:
    print("malformed")
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "malformed\n"
    assert found.stderr == ""


def test_a_line_is_written_where_no_file_handle_is_left():
    code = """if True:
        import errno, logging, resource, sys
        from edvit.runtime.logs import write_logs

        write_logs()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        logging.warning("no \\x1b handle")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr.endswith("no \\x1b handle\n")
    assert done.stderr.count("\n") == 1


def test_missing_file_handles_are_told_of_once_a_minute_by_each_logger():
    seldom = SeldomWithoutHandles()

    def passes(name, number):
        error = OSError(number, "")
        return seldom.filter(logging.LogRecord(name, logging.ERROR, "", 0, "", (), (OSError, error, None)))

    given = [passes("asyncio", errno.EMFILE), passes("asyncio", errno.ENFILE), passes("uvicorn.error", errno.EMFILE)]
    assert given == [True, False, True]
    assert passes("asyncio", errno.EPIPE)
    assert passes("asyncio", errno.EPIPE)
