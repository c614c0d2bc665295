"""Claims 2 and 3 from what cells measured of their own models; docs/study.md states the rules.

Written on 26 November 2026, when two cells had been looked at; what counts as free and as dear is `intervene`'s, from
before.
"""

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from spikesink.records.study import CellFunction, CellRecord, ClaimVerdict


@dataclass(frozen=True)
class FunctionRules:
    """Thresholds of claims 2 and 3; costs in nats are those of the verdict of `intervene`."""

    free_max: float = 0.03
    """One constant is free where its interval lies below."""
    costly_min: float = 0.1
    """A cost where the interval lies above."""
    function_seeds_min: int = 3
    function_confidence: float = 0.95


@dataclass(frozen=True)
class SeedInterval:
    """Mean over seeds with Student's t."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}], n = {self.n}"


def judged(
    claims: list[ClaimVerdict], baseline: list[CellRecord], rules: FunctionRules, *, spikes: bool = True
) -> list[ClaimVerdict]:
    """The claims of a study with 2 and 3 judged by its baseline's cells, where these have measured them."""
    cells = [cell.function for cell in baseline if cell.function is not None]
    if not cells:
        return claims
    own = {2: _constant(cells, rules), 3: _local(cells, rules)}
    if not spikes:
        own[2] = ("not tested", f"The baseline has no spikes by the definition. {own[2][1]}")
    return [
        claim.model_copy(update=dict(zip(("verdict", "evidence"), own[claim.claim], strict=True)))
        if claim.claim in own
        else claim
        for claim in claims
    ]


def over_seeds(cells: list[CellFunction], name: str, rules: FunctionRules) -> SeedInterval | None:
    """None where fewer cells have it than decide."""
    values = [value for cell in cells if (value := getattr(cell, name)) is not None]
    if len(values) < rules.function_seeds_min:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + rules.function_confidence) / 2, len(values) - 1)) * error
    return SeedInterval(mean, mean - half, mean + half, len(values))


def _constant(cells: list[CellFunction], rules: FunctionRules) -> tuple[Any, str]:
    """One constant must be free, no state at all costly, and another constant of its size worse."""
    names = ("freeze_nats", "zero_nats", "random_constant_nats")
    freeze, zero, random = (over_seeds(cells, name, rules) for name in names)
    if freeze is None or zero is None or random is None:
        reasons = sorted({cell.spikes_missing for cell in cells if cell.spikes_missing})
        return "not tested", f"Fewer than {rules.function_seeds_min} models have it ({'; '.join(reasons) or 'seeds'})."
    evidence = f"Nats: one constant {freeze}; zero {zero}; a random constant {random}."
    if freeze.high <= rules.free_max and zero.low >= rules.costly_min and random.low > freeze.high:
        return "supported", evidence
    # Not needed at all, or not replaceable: either way no constant that the model lives on.
    against = zero.high < rules.free_max or freeze.low > rules.costly_min
    return ("contradicted" if against else "undecided"), evidence


def _local(cells: list[CellFunction], rules: FunctionRules) -> tuple[Any, str]:
    """Where the sink takes more a head writes less, and what sink heads look at besides lies nearer than by chance."""
    write, reach = (over_seeds(cells, name, rules) for name in ("write_with_mass", "sink_head_distance"))
    if write is None or reach is None:
        reasons = sorted({cell.sinks_missing for cell in cells if cell.sinks_missing})
        return "not tested", f"Fewer than {rules.function_seeds_min} models have it ({'; '.join(reasons) or 'seeds'})."
    evidence = f"Correlation of sink mass and write {write}; distance without the sink over the uniform one {reach}."
    turns_down, near = write.high < 0, reach.high < 1
    if turns_down and near:
        return "supported", evidence
    opposite = (write.low > 0, reach.low > 1)
    if all(opposite):
        return "contradicted", evidence
    return ("mixed" if any(opposite) and (turns_down or near) else "undecided"), evidence


def rules_as_numbers(rules: FunctionRules) -> dict[str, float]:
    """The thresholds as they stand in a record."""
    return {name: float(value) for name, value in asdict(rules).items()}
