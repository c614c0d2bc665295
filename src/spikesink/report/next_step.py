"""What to run next after each kind of record, and about what it costs: the last words of every summary."""

import shlex
from collections.abc import Callable
from typing import Any

from spikesink.records import Anatomy, TrainingRun, VerificationRecord
from spikesink.records.interventions import Interventions
from spikesink.records.scan import BosPair
from spikesink.records.study import StudyRecord
from spikesink.records.survey import SurveyRecord
from spikesink.records.training import GraftRecord
from spikesink.report.command import command
from spikesink.report.document import Statement
from spikesink.report.format import counted

PASSES = 62
"""Runs of its text that `spikesink intervene` takes as long as: 387 s where 64 sequences take 10 (LOG.md)."""
EVALUATED = 40
"""Sequences that it runs by default."""
SCANNED = 4096
"""Tokens that `spikesink scan` runs by default."""
TELLING = 1024
"""Tokens from which on a scan's seconds say how fast a model is: of fewer, most are those of a first pass."""


def next_step(*records: Any) -> Statement:
    """Of all that is known of one model, or of one other record."""
    kind, step = next((kind, step) for kind, step in STEPS.items() if any(isinstance(one, kind) for one in records))
    return step(next(record for record in records if isinstance(record, kind)))


def intervene_s(record: Anatomy | BosPair) -> float | None:
    """About how many seconds `spikesink intervene` takes where this scan was made; None after a short one."""
    sequences, length = (record.provenance.tokens.get(name) or 0 for name in ("sequences", "seq_len"))
    if sequences * length < TELLING:
        return None
    return record.timing.forward_s * EVALUATED / sequences * PASSES


def lasting(seconds: float | None) -> str:
    """In brackets after a word: seconds, about 6 min, about 3 h; nothing where it is not known."""
    if seconds is None:
        return ""
    if seconds < 60:
        return " (seconds)"
    return f" (about {seconds / 60:.0f} min)" if seconds < 5400 else f" (about {seconds / 3600:.0f} h)"


def _statement(line: str, answers: str, seconds: float | None) -> Statement:
    return Statement("Next", f"{line} {answers}{lasting(seconds)}.", command=line)


def _scanned(record: Anatomy) -> Statement:
    line = command("intervene", record.provenance)
    return _statement(line, "measures what int8 and a short KV cache cost, and what breaks", intervene_s(record))


def _intervened(record: Interventions) -> Statement:
    if record.quantisation.applicable:
        return _statement("spikesink export RUN --for json", "writes what to spare for other tools", 0)
    line = command("intervene", record.provenance, "--which", "all")
    text = "adds int8 and the KV cache"
    if not record.has_changes:
        # How many passes its seconds were is not known.
        return _statement(line, text, None)
    return _statement(line, text, 2 * PASSES * record.timing.forward_s / len(record.interventions))


def _verified(record: VerificationRecord) -> Statement:
    line = command("scan", record.provenance)
    return _statement(line, "finds its spikes and sinks", record.timing.total_s)


def _trained(record: TrainingRun) -> Statement:
    line = "spikesink scan RUN/model --tokens RUN/held_out.npy"
    return _statement(line, "finds its spikes and sinks", record.timing.total_s * SCANNED / max(record.tokens, 1))


def _grafted(record: GraftRecord) -> Statement:
    line = "spikesink intervene RUN/model"
    return _statement(line, "measures what int8 and the KV cache of the result must spare", record.timing.total_s)


def _compared(record: BosPair) -> Statement:
    line = command("intervene", record.provenance)
    return _statement(line, "measures what breaks without spikes and sinks", intervene_s(record))


def _studied(record: StudyRecord) -> Statement:
    seeds = int(record.rules.get("seeds_min", 0))
    # A seed that diverged has a result, and is not run again.
    run = [len(row.seeds) + row.diverged for row in record.rows]
    if run and min(run) < seeds:
        missing = sum(max(0, seeds - n) for n in run)
        lasts = lasting(record.timing.forward_s / max(sum(run), 1) * missing)
        return Statement("Next", f"The same command with --seeds {seeds} adds {counted(missing, 'cell')}{lasts}.")
    file = shlex.quote(f"RUNS/{record.study}-{record.preset}.json")
    line = f"spikesink report {file} --figures figures"
    return _statement(line, "draws every chart as a file", 0)


def _surveyed(record: SurveyRecord) -> Statement:
    return _statement("spikesink compare SURVEY LATER", "says what moved since, once there is a later survey", 0)


STEPS: dict[type, Callable[[Any], Statement]] = {
    Interventions: _intervened, Anatomy: _scanned, VerificationRecord: _verified, TrainingRun: _trained,
    GraftRecord: _grafted, BosPair: _compared, StudyRecord: _studied, SurveyRecord: _surveyed,
}  # fmt: skip
"""By kind of record; of a model's, the first that is there says it."""
