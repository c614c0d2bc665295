"""The stand-in for the hub of the tests of access."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS / "access"))
