"""The requirements: bounded ranges for people, exact versions with hashes beside them."""

import re

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

FILES = ("requirements.txt", "requirements-dev.txt", "requirements-optional.txt")


def read_requirements(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", FILES)
def test_every_package_has_a_lower_and_an_upper_bound(name):
    for requirement in read_requirements(name):
        assert {bound.operator for bound in requirement.specifier} == {">=", "<"}, requirement


def test_the_lock_file_has_every_package_in_its_range_with_hashes():
    lock = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==([^ ;]+)(?: ;[^\\]*)? \\$", lock, re.MULTILINE))
    for requirement in read_requirements("requirements.txt"):
        assert pinned[requirement.name] in requirement.specifier
    entries = re.split(r"^(?=[\w.-]+==)", lock, flags=re.MULTILINE)[1:]
    assert len(entries) >= len(pinned) and all(" --hash=sha256:" in entry for entry in entries)
    assert "://" not in lock


def test_the_scripts_look_for_every_package():
    from support.cli import PACKAGES

    modules = {"pillow": "PIL"}
    names = [modules.get(requirement.name, requirement.name) for requirement in read_requirements("requirements.txt")]
    assert sorted(names) == sorted(PACKAGES)
