"""The planted case as a fixture."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from planted import Case


@pytest.fixture
def case() -> Case:
    return Case()
