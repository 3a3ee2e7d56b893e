"""What cannot be printed does not end what runs for months."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from edvit.cli.console.output import lose_what_cannot_be_written
lose_what_cannot_be_written()
for i in range(20_000):
    print("a line", i)
print("an error", file=sys.stderr)
os.write(int(sys.argv[1]), b"it went on")
"""


def went_on(tmp_path, stdout):
    with (tmp_path / "said").open("wb") as said:
        command = [sys.executable, "-c", PROGRAM, str(said.fileno())]
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, pass_fds=[said.fileno()], timeout=120
        )
    assert (done.returncode, done.stderr) == (0, "an error\n")
    return (tmp_path / "said").read_text() == "it went on"


def test_a_full_disk_takes_nothing(tmp_path):
    with Path("/dev/full").open("wb") as full:
        assert went_on(tmp_path, full)


def test_a_reader_that_is_gone_takes_nothing(tmp_path):
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        assert went_on(tmp_path, reader.stdin.fileno())
        reader.stdin.close()


def test_a_line_is_there_as_soon_as_it_is_printed(tmp_path):
    program = (
        "import time\nfrom edvit.cli.console.output import lose_what_cannot_be_written\nlose_what_cannot_be_written()\n"
        "print('a line — now')\ntime.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "a line — now\n"
        process.kill()
