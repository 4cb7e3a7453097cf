"""Whatever standard output is, or becomes, nothing is lost but what it could not take."""

import codecs
import fcntl
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from basics import streams

# A command that prints 100,000 lines, of characters that ASCII lacks, and saves a file.
WORK = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from basics.errors import run_main

def main():
    for number in range(100_000):
        print(number, "東京")
    pathlib.Path(sys.argv[1]).write_text("saved")
    return int(sys.argv[2])

run_main(main)
"""


def shell(command, **environment):
    """Run a command line in bash; a Python that it calls buffers what it prints."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("unbuffered", ["", "-u"])
@pytest.mark.parametrize(
    "end, code, reported",
    [
        ("| head -1", 0, "Broken pipe"),
        ("> /dev/full", 1, "No space left on device"),
        ("2>&1 | head -1", 0, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2> /dev/full | tail -1", 0, ""),
    ],
)
def test_a_command_saves_its_work_wherever_its_output_goes(tmp_path, unbuffered, end, code, reported):
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    command = f"{sys.executable} {unbuffered} {tmp_path}/work.py {tmp_path}/result 0 {end}; exit ${{PIPESTATUS[0]}}"
    process = shell(command)
    assert process.returncode == code and (tmp_path / "result").read_text() == "saved"
    problem = f"Standard output cannot be written ({reported}): nothing more is printed, but files are saved as usual\n"
    assert process.stderr == (problem if reported else "")


def test_lost_output_does_not_hide_another_exit_code(tmp_path):
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    assert shell(f"{sys.executable} {tmp_path}/work.py {tmp_path}/result 7 > /dev/full").returncode == 7


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "LC_ALL": "POSIX"}])
def test_characters_that_the_output_lacks_are_escaped(tmp_path, environment):
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    environment = {"PYTHONCOERCECLOCALE": "0", **environment}
    process = shell(f"{sys.executable} {tmp_path}/work.py {tmp_path}/result 0 | tail -1", **environment)
    assert process.stdout == "99999 \\u6771\\u4eac\n" and process.stderr == ""


def test_a_full_pipe_that_does_not_wait_loses_nothing(tmp_path):
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    process = subprocess.Popen([sys.executable, tmp_path / "work.py", tmp_path / "result", "0"], stdout=writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as output:
        lines = output.read().splitlines()
    assert process.wait() == 0 and len(lines) == 100_000 and lines[-1] == "99999 東京"


class OnlyWrite:
    """What a program may put in the place of standard output."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Ascii(OnlyWrite):
    encoding = "ascii"

    def write(self, text):
        super().write(text.encode("ascii").decode())

    def flush(self):
        pass

    def isatty(self):
        return False


class Failing(OnlyWrite):
    def write(self, text):
        raise RuntimeError("no")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("make", [lambda: None, object, closed, OnlyWrite, Ascii, Failing, io.StringIO])
def test_any_object_can_be_printed_to(monkeypatch, make, name):
    stream = make()
    monkeypatch.setattr(sys, name, stream)
    for _ in range(2):
        streams.protect()
        print("é\n", end="", file=getattr(sys, name), flush=True)
        assert getattr(sys, name).isatty() is False
    if isinstance(stream, OnlyWrite):
        assert stream.text in ("é\né\n", "\\xe9\n\\xe9\n", "")
    if isinstance(stream, io.StringIO) and not stream.closed:
        assert getattr(sys, name) is stream and stream.getvalue() == "é\né\n"
    assert not streams.output_lost()


def test_a_writer_of_bytes_gets_escapes(monkeypatch):
    target = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", codecs.getwriter("ascii")(target))
    streams.protect()
    print("é")
    assert target.getvalue() == b"\\xe9\n"


def test_a_notebooks_stream_is_left_alone(monkeypatch):
    class OutStream(io.TextIOBase):
        encoding = "UTF-8"

        def write(self, text):
            return len(text)

    stream = OutStream()
    monkeypatch.setattr(sys, "stdout", stream)
    streams.protect()
    assert sys.stdout is stream


# ------------------------------------------------------------------------- the scripts


@pytest.mark.parametrize("end, code", [("| head -1", 0), ("> /dev/full", 1), (">&- 2>&-", 0)])
def test_predictions_are_saved_wherever_the_output_goes(tmp_path, end, code):
    (tmp_path / "in").mkdir()
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    script = f"{sys.executable} {ROOT}/signs_functional.py --predict {tmp_path}/in --output-dir {tmp_path}/out {end}"
    process = shell(f"{script}; exit ${{PIPESTATUS[0]}}")
    assert process.returncode == code and "Traceback" not in process.stderr and "error" not in process.stderr
    saved = tmp_path / "out" / "predictions"
    assert len((saved / "predictions.csv").read_text().splitlines()) == 31 and (saved / "predictions.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["| head -1", "> /dev/full"])
def test_a_training_is_saved_wherever_the_output_goes(tmp_path, end):
    script = f"{sys.executable} {ROOT}/happy_sequential.py --dry-run --output-dir {tmp_path}/out {end}"
    process = shell(f"{script}; exit ${{PIPESTATUS[0]}}")
    assert process.returncode == int("full" in end) and "Traceback" not in process.stderr, process.stderr
    assert {"model.keras", "metrics.json", "report.html"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    "arguments", [["--help"], pytest.param(["--dry-run", "--output-dir", "OUT"], marks=pytest.mark.slow)]
)
def test_a_script_runs_inside_another_program_as_in_a_notebook(tmp_path, arguments):
    code = (
        "import io, runpy, sys\n"
        "class OutStream(io.TextIOBase):\n"
        "    def write(self, text): return sys.__stdout__.write(text)\n"
        "script, *arguments = sys.argv[1:]\n"
        "sys.stdout, sys.argv = OutStream(), [script, *arguments]\n"
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "runpy.run_path(script, run_name='__main__')\n"
    )
    arguments = [argument.replace("OUT", str(tmp_path / "out")) for argument in arguments]
    command = [sys.executable, "-c", code, str(ROOT / "happy_sequential.py"), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert "usage: " in process.stdout if "--help" in arguments else (tmp_path / "out" / "report.html").exists()
