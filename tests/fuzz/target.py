"""A reader of what strangers wrote, and trying many inputs on it."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contained import GOOD, Outcome, contained
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MARKER = "executed"
"""What every payload makes: a file of this name in the current folder."""


@dataclass(frozen=True)
class Target:
    """One reader, and a strategy for what it is given; strategies are made late, since some need a model.

    `read` gets one input and an empty folder; it returns what it made of it or raises a SpikesinkError.
    """

    name: str
    inputs: Callable[[], st.SearchStrategy]
    read: Callable[[Any, Path], object]

    def tried(self, given: Any) -> Outcome:
        """The outcome of one input, in a process and a folder of its own; running code or writing outside counts."""
        outside = Path(tempfile.mkdtemp(prefix="spikesink-hostile-"))
        inside = outside / "a" / "inside"
        inside.mkdir(parents=True)

        def read() -> None:
            import os

            os.chdir(inside)
            self.read(given, inside)

        try:
            outcome = contained(read)
            if any(outside.rglob(MARKER)):
                return Outcome("executed", repr(given)[:2000])
            if sorted(path.name for path in (*outside.iterdir(), *(outside / "a").iterdir())) != ["a", "inside"]:
                return Outcome("escaped", repr(given)[:2000])
            return outcome
        finally:
            shutil.rmtree(outside, ignore_errors=True)


def fuzz(target: Target, examples: int) -> Counter:
    """Try so many inputs; raises AssertionError with the first, made small, that is neither accepted nor refused."""
    counts: Counter = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs())
    def attempt(given: Any) -> None:
        outcome = target.tried(given)
        counts[outcome.kind] += 1
        assert outcome.kind in GOOD, f"{target.name}: {outcome.kind}\n{outcome.text}"
        assert outcome.kind == "accepted" or outcome.text.strip(), "refused without a word"

    attempt()
    return counts
