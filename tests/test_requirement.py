"""Another transformers is one clear message, and only the zoo needs the newest."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tiny import tiny

from spikesink import requirement
from spikesink.errors import RequirementError
from spikesink.requirement import TRANSFORMERS, TRANSFORMERS_ZOO, require_transformers

ROOT = Path(__file__).parent.parent
SURVEYED = ROOT / "tests" / "strangers" / "families.json"
REPORTING = """
import sys
import spikesink, spikesink.cli.main, spikesink.records, spikesink.report
assert not {"torch", "transformers"} & set(sys.modules)
"""
LOADING = """
import sys
import spikesink
from spikesink.errors import RequirementError
accessed = spikesink.load(sys.argv[1])
assert accessed.n_layers == 3
assert not [name for name in sys.modules if name.startswith("spikesink.zoo")]
try:
    spikesink.load(sys.argv[2])
except RequirementError as error:
    print(error)
"""


@pytest.fixture
def pretend(tmp_path):
    """The environment of a process that finds the metadata of another transformers than the one it has."""

    def environment(version):
        there = tmp_path / "pretended" / f"transformers-{version}.dist-info"
        there.mkdir(parents=True)
        (there / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(there.parent), *sys.path])}

    return environment


def run(environment, *arguments):
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("installed", ["4.57.6", "5.5.4", "5.6.1", "6.0.0rc1", "6.0.0", "6.1"])
def test_what_is_too_old_or_too_new_is_refused(installed, monkeypatch):
    monkeypatch.setattr(requirement, "version", lambda _name: installed)
    message = (
        f"Got transformers {installed}; scanning needs {TRANSFORMERS}. Run: pip install 'transformers{TRANSFORMERS}'"
    )
    with pytest.raises(RequirementError, match=re.escape(message)):
        require_transformers(TRANSFORMERS, "scanning")


@pytest.mark.parametrize("installed", ["5.6.2", "5.12.1", "5.24.0", "5.25.0.dev0", "5.99"])
def test_what_is_in_range_is_not(installed, monkeypatch):
    monkeypatch.setattr(requirement, "version", lambda _name: installed)
    require_transformers(TRANSFORMERS, "scanning")


def test_one_that_is_missing_is_named(monkeypatch):
    def missing(_name):
        raise requirement.PackageNotFoundError

    monkeypatch.setattr(requirement, "version", missing)
    with pytest.raises(RequirementError, match="Got transformers no version; scanning needs"):
        require_transformers(TRANSFORMERS, "scanning")


@pytest.mark.parametrize(
    ("installed", "command", "needed"),
    [("4.57.6", ("verify",), TRANSFORMERS), ("5.20.2", ("train", "nano", "--show"), TRANSFORMERS_ZOO)],
)
def test_the_command_line_says_it_without_a_traceback(pretend, installed, command, needed):
    ran = run(pretend(installed), "-m", "spikesink", *command)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert f"error: Got transformers {installed}; spikesink" in ran.stderr
    assert f"needs {needed}. Run: pip install 'transformers{needed}'" in ran.stderr


def test_records_and_reports_need_none(pretend):
    ran = run(pretend("4.57.6"), "-c", REPORTING)
    assert ran.returncode == 0, ran.stderr


def test_a_model_of_anyones_does_not_import_the_zoo(pretend, tmp_path):
    from spikesink.zoo import DecoderSpec, build

    tiny("llama").save_pretrained(tmp_path / "llama")
    spec = DecoderSpec(vocab_size=97, d_model=24, n_layers=1, n_heads=3, n_kv_heads=3, d_head=8)
    build(spec).save_pretrained(tmp_path / "trained")
    ran = run(pretend("5.20.2"), "-c", LOADING, tmp_path / "llama", tmp_path / "trained")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("Got transformers 5.20.2; spikesink's own decoder")
    assert TRANSFORMERS_ZOO in ran.stdout


def test_the_floor_is_what_is_installed_for_and_what_was_surveyed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (declared,) = [each for each in map(Requirement, project["dependencies"]) if each.name == "transformers"]
    assert declared == Requirement(f"transformers{TRANSFORMERS}")
    surveyed = sorted(map(Version, json.loads(SURVEYED.read_text())))
    assert all(declared.specifier.contains(each) for each in surveyed)
    assert f">={surveyed[0]}" in TRANSFORMERS.split(","), "the oldest that is allowed is one that was surveyed"
