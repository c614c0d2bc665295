"""Hostile input ends in a clear error, in bounded time and memory, and never in code that runs.

A few inputs each here; `make fuzz` tries many (SPIKESINK_FUZZ=5000).
"""

import os

import pytest

from fuzz.target import fuzz
from fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("SPIKESINK_FUZZ", "12"))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_accepted_or_refused(target):
    counts = fuzz(target, EXAMPLES)
    assert counts.total() >= EXAMPLES and set(counts) <= {"accepted", "refused"}
