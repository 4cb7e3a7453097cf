"""Lines and continuation lines in order: ruff, as pyproject.toml sets it up."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_has_no_complaint(command):
    ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
    process = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout + process.stderr
