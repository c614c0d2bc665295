"""What lies in a folder that can speak for a claim: its studies, grafts, sweeps and scans of heads."""

from dataclasses import dataclass, field
from pathlib import Path

from spikesink.records import Anatomy
from spikesink.records.interventions import Interventions
from spikesink.records.study import SPEAKS_SINCE, StudyRecord
from spikesink.records.training import GraftRecord
from spikesink.report.runs import read_studies

DOSES, GRAFTS, HEADS = "dose", "graft", "heads"
"""Folders of runs of `intervene --dose`, of `graft` and of `scan --measure heads`, beside the studies."""


@dataclass
class Evidence:
    """The records of a folder, by name where there are several of a kind."""

    studies: list[StudyRecord]
    doses: dict[str, Interventions]
    grafts: dict[str, GraftRecord]
    heads: dict[str, Anatomy] = field(default_factory=dict)
    left_out: list[StudyRecord] = field(default_factory=list)
    """Studies judged by earlier rules."""

    @property
    def without(self) -> str:
        """Which studies do not speak, and what to do about it; empty where all do."""
        names = ", ".join(f"{one.study}-{one.preset} (version {one.rules_version})" for one in self.left_out)
        again = "The command of a study judges it anew without training"
        return f"Left out, since earlier rules judged them: {names}. {again}." if names else ""


def is_findings(folder: Path) -> bool:
    """Whether a folder holds studies, and grafts or sweeps beside them."""
    return (
        folder.is_dir() and any((folder / name).is_dir() for name in (DOSES, GRAFTS)) and bool(read_studies([folder]))
    )


def read_evidence(folder: Path) -> Evidence:
    """The folder's studies by rules that count, its grafts and its sweeps. Raises RecordError."""
    studies = read_studies([folder])
    since = min(SPEAKS_SINCE, max((study.rules_version for study in studies), default=0))
    return Evidence(
        [study for study in studies if study.rules_version >= since],
        {run.parent.name: Interventions.read(run.parent) for run in _runs(folder / DOSES, Interventions.file)},
        {run.parent.name: GraftRecord.read(run.parent) for run in _runs(folder / GRAFTS, GraftRecord.file)},
        {run.parent.name: Anatomy.read(run.parent) for run in _runs(folder / HEADS, Anatomy.file)},
        [study for study in studies if study.rules_version < since],
    )


def _runs(folder: Path, file: str) -> list[Path]:
    return sorted(folder.glob(f"*/{file}"))
