"""The stand-in for the hub, the tiny models and the browser of the tests beside these."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "survey"), str(TESTS / "access")]
