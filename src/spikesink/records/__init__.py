"""Frozen result types, their schema version and how they are written and read. Importing this loads no torch."""

from spikesink.records import sections, study
from spikesink.records.base import (
    SCHEMA,
    Frozen,
    JsonRecord,
    NotApplicable,
    Provenance,
    Record,
    Section,
    Timing,
    package_versions,
)
from spikesink.records.files import check_output
from spikesink.records.scan import (
    Anatomy,
    BlockCycle,
    Lifecycle,
    MassiveChannel,
    Peak,
    SinkHead,
    SinkRatio,
    Sinks,
    SpikeToken,
    SpikeVerdict,
    StepRule,
    Summary,
)
from spikesink.records.training import GraftRecord, TrainingRun
from spikesink.records.verification import Check, VerificationRecord

__all__ = [
    "SCHEMA",
    "Anatomy",
    "BlockCycle",
    "Check",
    "Frozen",
    "GraftRecord",
    "JsonRecord",
    "Lifecycle",
    "MassiveChannel",
    "NotApplicable",
    "Peak",
    "Provenance",
    "Record",
    "Section",
    "SinkHead",
    "SinkRatio",
    "Sinks",
    "SpikeToken",
    "SpikeVerdict",
    "StepRule",
    "Summary",
    "Timing",
    "TrainingRun",
    "VerificationRecord",
    "check_output",
    "package_versions",
    "sections",
    "study",
]
