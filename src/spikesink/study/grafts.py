"""Grafts of one model as a study: every replacement a variant, the control the baseline, judged by the same rules."""

import json
import time
from collections import defaultdict

from spikesink.errors import InputError
from spikesink.positions import uniform_first_key
from spikesink.records import Provenance, Timing, package_versions
from spikesink.records.study import StudyRecord, VariantRow
from spikesink.records.training import SPIKE_RATIO_MIN, GraftPoint, GraftRecord
from spikesink.study import claims, verdict
from spikesink.study.table import spread

CONTROL = "control"
ABOUT = (
    "What becomes of spikes and sinks when one design choice of a finished model is replaced and healed? (What is "
    "asked, and that only all kinds together contradict a claim, was written when the twelve grafts were known.)"
)
ELSEWHERE = ["normaliser=off_by_one", "normaliser=learned_sink", "gate=conditional"]
NORMS = [*(f"arrangement={kind}" for kind in ("sandwich", "sandwich_qk", "post", "no_input")), "norm=dyt"]
TESTED = [
    {"claim": 1, "one_is_enough": True, "speak": NORMS},
    {"claim": 4, "part": "spikes", "speak": NORMS},
    {
        "one_is_enough": True,
        "text": "A short healing is enough for heads to leave their sinks where they have somewhere else to attend.",
        "speak": ELSEWHERE,
        "expect": {"sinks": "fall"},
    },
]
"""What grafts can say, and of which kinds. One is enough where the claim says that it can be done: that a short
training brings nothing back is no proof that a long one would not, so only all of them together contradict it."""


def study_of(records: list[GraftRecord], preset: str | None = None, version: int = verdict.VERSION) -> StudyRecord:
    """Rows over seeds and verdicts of grafts of one model, measured on one text.

    preset: what tells it from other such studies; default the model. version: of the rules.
    Of the spike the norm ratio alone is known: it can fall, but that all of its parts stay is not seen. Raises
    InputError where nothing has a healed model beside a control, or where the grafts cannot be compared.
    """
    started = time.perf_counter()
    whole = [record for record in records if {"healed", CONTROL} <= set(record.points)]
    if not whole:
        raise InputError("No graft has a healed model and a control; expected some that were trained with both.")
    _check_alike(records)
    kinds = _by_kind(records)
    controls = {_seed(record): record for record in reversed(whole)}
    rows = [
        _row(CONTROL, "the original, trained alike", controls, CONTROL),
        *(_row(kind, "replaced and healed", of_kind, "healed") for kind, of_kind in kinds.items()),
    ]
    verdicts = verdict.verdicts(rows, CONTROL, verdict.RULES[version])
    tested = [claims.Claim.parse(claim) for claim in TESTED]
    first = whole[0]
    return StudyRecord(
        study="grafts",
        preset=preset or first.model,
        about=ABOUT,
        baseline=CONTROL,
        pretrained=first.model,
        rows=rows,
        verdicts=verdicts,
        claims=[one for one in claims.claims(tested, verdicts) if one.verdict != "not tested"],
        rules=verdict.rules_as_numbers(verdict.RULES[version]),
        rules_version=version,
        errors=[
            f"{_kind(one)}, seed {_seed(one)}: {name}: {why}" for one in records for name, why in one.failed.items()
        ],
        cells=[],
        provenance=Provenance(
            model=first.provenance.model,
            tokens=first.provenance.tokens,
            versions=package_versions(),
            settings={"steps": first.steps, "tokens": first.tokens},
        ),
        timing=Timing.now(total_s=time.perf_counter() - started),
    )


def _check_alike(records: list[GraftRecord]) -> None:
    """One model, one text, one training but for its seed, the same held-out sequences. Raises InputError."""
    alike = {
        (
            one.model, one.steps, one.tokens, _precision(one), _optimiser(one),
            one.provenance.tokens["source_sha256"], *one.provenance.tokens["evaluated"],
        )
        for one in records
    }  # fmt: skip
    if len(alike) > 1:
        raise InputError(
            "The grafts differ in model, steps, tokens, precision, optimiser, text or held-out sequences "
            f"({len(alike)} kinds of run); expected grafts that were made alike. Give them folder by folder."
        )


def _by_kind(records: list[GraftRecord]) -> dict[str, dict[int, GraftRecord]]:
    """By what was replaced and by seed. Raises InputError for two that would be one."""
    kinds: dict[str, dict[int, GraftRecord]] = defaultdict(dict)
    for record in records:
        kind, seed = kinds[_kind(record)], _seed(record)
        other = next(iter(kind.values()), record)
        if seed in kind or other.changed != record.changed:
            what = f"of seed {seed}" if seed in kind else "with other options"
            raise InputError(f"There are two grafts '{_kind(record)}' {what}. Give them folder by folder.")
        kind[seed] = record
    return dict(kinds)


def _kind(record: GraftRecord) -> str:
    """`arrangement=sandwich`."""
    return ",".join(f"{path}={after}" for path, (_, after) in record.replaced.items())


def _precision(record: GraftRecord) -> str:
    """Of the training; records from before `auto` say it in the recipe alone."""
    settings = record.provenance.settings
    return settings.get("precision") or settings["recipe"]["training"]["precision"]


def _optimiser(record: GraftRecord) -> str:
    return json.dumps(record.provenance.settings["recipe"]["optimiser"], sort_keys=True)


def _seed(record: GraftRecord) -> int:
    return int(record.provenance.settings["recipe"]["data"]["seed"])


def _row(variant: str, summary: str, records: dict[int, GraftRecord], point: str) -> VariantRow:
    done = {seed: record for seed, record in sorted(records.items()) if point in record.points}
    first = next(iter(records.values()))
    values: dict[str, list[float]] = defaultdict(list)
    for record in done.values():
        for name, value in _figures(record.points[point], record.provenance.tokens["evaluated"][1]).items():
            values[name].append(value)
    return VariantRow(
        variant=variant,
        summary=summary,
        changes=[]
        if point == CONTROL
        else [f"{path}: {before} -> {after}" for path, (before, after) in first.replaced.items()],
        seeds=list(done),
        diverged=len(records) - len(done),
        failed=0,
        parameters=first.parameters - (first.new_parameters if point == CONTROL else 0),
        tokens=first.tokens,
        measured={name: spread(readings) for name, readings in values.items()},
        values=dict(values),
        paper=None,
    )


def _figures(point: GraftPoint, tokens: int) -> dict[str, float]:
    """By the names of a cell's `Measured`, and what rounding costs; tokens of a sequence."""
    return {
        "perplexity": point.perplexity.value,
        "sink_ratio": point.sink_ratio,
        "spike": point.spike,
        "max_over_median": point.max_over_median,
        "norm_ratio": point.norm_ratio,
        "first_token_importance": point.first_key_importance,
        "uniform_importance": uniform_first_key(tokens),
        "has_spikes": float(point.norm_ratio >= SPIKE_RATIO_MIN),
        "int8_nats": point.int8_nats.value,
        "fp8_nats": point.fp8_nats.value,
    }
