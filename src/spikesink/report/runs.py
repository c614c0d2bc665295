"""From folders to records: what lies in a run, and which records are of one model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikesink.errors import InputError, RecordError
from spikesink.records import Anatomy, Record, TrainingRun
from spikesink.records.files import read_json
from spikesink.records.interventions import Interventions
from spikesink.records.study import StudyRecord
from spikesink.report.conditions import name

KINDS: tuple[type[Record], ...] = (Anatomy, Interventions, TrainingRun)
FILES = tuple(kind.file for kind in KINDS)
"""Of the records of one model: a folder holds at most one of each."""


@dataclass(frozen=True)
class Source:
    """A record and the folder it came from."""

    record: Record
    folder: Path


@dataclass
class Model:
    """All records of one model: at most one of each kind."""

    name: str
    anatomy: Anatomy | None = None
    interventions: Interventions | None = None
    training: TrainingRun | None = None
    sources: list[Source] = field(default_factory=list)

    def takes(self, record: Record) -> bool:
        """Whether this record is of this model and of a kind that it lacks."""
        return getattr(self, _slot(record)) is None and all(_same(record, source.record) for source in self.sources)

    def add(self, source: Source) -> None:
        setattr(self, _slot(source.record), source.record)
        self.sources.append(source)


def read_runs(paths: Sequence[Path]) -> list[Source]:
    """Every record in these folders, in their order. Raises RecordError for a folder that holds none."""
    return [source for path in paths for source in _read(path)]


def read_studies(paths: Sequence[Path]) -> list[StudyRecord]:
    """The studies that these paths name: their JSON files, the folders of their cells, or folders that hold them."""
    by_path = {path: _study_files(path.resolve()) for path in paths}
    if any(by_path.values()) and not all(by_path.values()):
        other = next(path for path, files in by_path.items() if not files)
        raise InputError(f"'{other}' holds no study, others do; give studies or models, one page for each.")
    return [StudyRecord.read_file(file) for file in dict.fromkeys(file for files in by_path.values() for file in files)]


def _study_files(path: Path) -> list[Path]:
    beside = path.with_name(f"{path.name}.json")
    candidates = [path] if path.is_file() else [*sorted(path.glob("*.json")), beside]
    return [file for file in candidates if file.is_file() and _is_study(file)]


def _is_study(file: Path) -> bool:
    if file.name in FILES:
        return False
    try:
        return read_json(file, StudyRecord.command).get("kind") == "study"
    except RecordError:
        return False


def _read(path: Path) -> Iterable[Source]:
    if not path.exists():
        raise RecordError(f"'{path}' does not exist; expected the folder of a run, e.g. runs/MODEL-TIME.")
    folder = path.parent if path.is_file() and path.name in FILES else path
    kinds = [kind for kind in KINDS if (folder / kind.file).is_file()]
    if path.is_file() and folder != path:
        kinds = [kind for kind in kinds if kind.file == path.name]
    if not kinds:
        raise RecordError(
            f"'{path}' holds no record; expected a folder with one of {', '.join(FILES)}. Make one with spikesink scan "
            "--out."
        )
    return [Source(kind.read(folder), folder) for kind in kinds]


def group(sources: Sequence[Source]) -> list[Model]:
    """Records of one model together; a second record of a kind starts another column."""
    models: list[Model] = []
    for source in sources:
        fitting = next((model for model in models if model.takes(source.record)), None)
        if fitting is None:
            fitting = Model(name(source.record.provenance.model))  # type: ignore[attr-defined]
            models.append(fitting)
        fitting.add(source)
    return models


def _slot(record: Record) -> str:
    return {Anatomy: "anatomy", Interventions: "interventions", TrainingRun: "training"}[type(record)]


def _same(one: Record, other: Record) -> bool:
    """Of one model: the same weights where both say which, else the same name."""
    models = [record.provenance.model for record in (one, other)]  # type: ignore[attr-defined]
    if all(model.get("file_sha256") for model in models):
        return same_weights(*models)
    return name(models[0]) == name(models[1])


def same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two models, as records have them, were made of the same files: their own, what they were de-quantised
    from, and those of an adapter, beside which the others are its base's."""
    adapters = [model.get("adapter") or {} for model in (one, other)]
    named = ("gguf_quantisation", "dequantised_from")
    return (
        bool(one.get("file_sha256"))
        and all(one.get(name) == other.get(name) for name in named)
        and all(same_files(*(each.get("file_sha256") or {} for each in pair)) for pair in ((one, other), adapters))
    )


LATER = (".jinja", ".py", ".tiktoken", ".txt")
"""Endings of files that records from before 28 November 2026 do not hash."""


def same_files(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two lists of hashes by name are of the same files, as far as both say."""
    unlike = [name for name in {*one, *other} if one.get(name) != other.get(name)]
    return all(name.endswith(LATER) and (name not in one or name not in other) for name in unlike)


def labels(models: Sequence[Model]) -> list[str]:
    """A name for each that no other has: the model's, with its folder where that is not enough."""
    names = [model.name for model in models]
    if len(set(names)) == len(names):
        return names
    folders = [model.sources[0].folder.resolve() for model in models]
    longer = [f"{name} ({folder.name})" for name, folder in zip(names, folders, strict=True)]
    if len(set(longer)) == len(longer):
        return longer
    return [f"{name} ({index + 1})" for index, name in enumerate(names)]
