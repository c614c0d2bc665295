"""What lies in a folder that can speak for a claim: its studies, grafts, sweeps and scans of heads."""

from dataclasses import dataclass, field
from pathlib import Path

from spikesink.records import Anatomy
from spikesink.records.interventions import Interventions
from spikesink.records.study import SPEAKS_SINCE, StudyRecord
from spikesink.records.training import GraftRecord
from spikesink.report.drawing import Figure
from spikesink.report.runs import read_studies

ROUTES = ("finished model", "graft", "from scratch")
OWN = "Finding"
"""Title of what is no claim of the paper's."""
DOSES, GRAFTS, HEADS = "dose", "graft", "heads"
"""Folders of runs of `intervene --dose`, of `graft` and of `scan --measure heads`, beside the studies."""


@dataclass
class Line:
    """What one record says about a claim."""

    route: str
    source: str
    n: str
    says: str
    verdict: str
    models: int = 1
    """That are told together, each with its own n."""

    @property
    def size(self) -> str:
        """5 x 240 sequences."""
        return self.n if self.models == 1 else f"{self.models} x {self.n}"


@dataclass
class Finding:
    """A claim with its verdict, and everything that led there."""

    title: str
    text: str
    verdict: str
    lines: list[Line]
    change: str
    """What would change the verdict."""
    paper: str
    figures: list[Figure] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """The claim by its number; a finding of our own by what it says, since it has no other name."""
        return f"{self.title if self.intro else self.text.rstrip('.')}: {self.verdict}"

    @property
    def intro(self) -> str:
        """The text, unless it is the heading."""
        return self.text if self.title != OWN else ""


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


def combined(lines: list[Line]) -> str:
    """What all lines together decide: one verdict where they agree, mixed where they do not."""
    decided = {line.verdict for line in lines if line.verdict in ("supported", "contradicted", "mixed")}
    if decided:
        return decided.pop() if len(decided) == 1 else "mixed"
    return "undecided" if any(line.verdict for line in lines) else "not tested"


def source(name: str, record: Interventions | Anatomy, seed: str = "") -> str:
    """Model, run and length of its sequences; seed: what the model's name ends in, left out where several have one."""
    tokens, model = record.provenance.tokens, str(record.provenance.model.get("name", "model"))
    length = tokens.get("tokens") or tokens.get("seq_len")
    model = model.removesuffix(f"-{seed}") if seed else model
    return f"{model}, {name}" + (f", {length} tokens" if length else "")
