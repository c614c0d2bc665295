"""From a record to its document."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from spikesink.errors import InputError
from spikesink.records import Anatomy, TrainingRun, VerificationRecord
from spikesink.records.files import run_folder
from spikesink.records.interventions import Interventions
from spikesink.records.scan import BosPair
from spikesink.records.study import StudyRecord
from spikesink.records.survey import SurveyRecord
from spikesink.records.training import GraftRecord
from spikesink.report.answer import answer
from spikesink.report.atlas import atlas_document, moves_document
from spikesink.report.command import Places, filled
from spikesink.report.compare import compare_document
from spikesink.report.conditions import name
from spikesink.report.document import Document
from spikesink.report.evidence import is_findings
from spikesink.report.findings import findings_document
from spikesink.report.graft import graft_document
from spikesink.report.model import model_document
from spikesink.report.runs import Model, Source, group, read_runs, read_studies
from spikesink.report.study import study_document
from spikesink.report.verification import bos_document, verification_document


def record_document(record: object) -> Document | None:
    """What one record says; None for one of another kind."""
    if isinstance(record, StudyRecord):
        return study_document([record])
    if isinstance(record, SurveyRecord):
        return atlas_document(record)
    if isinstance(record, VerificationRecord):
        return verification_document(record)
    if isinstance(record, GraftRecord):
        return graft_document(record)
    if isinstance(record, BosPair):
        return bos_document(record)
    if isinstance(record, Anatomy | Interventions | TrainingRun):
        return model_document(_model(record))
    return None


def brief(record: object) -> str | None:
    """A record on one line: its kind, the model, and what it says first; None for one of another kind."""
    if isinstance(record, Anatomy | Interventions | TrainingRun):
        # Without the charts, which take longer.
        model = _model(record)
        title, statements = model.name, answer(model)
    elif (document := record_document(record)) is not None:
        title, statements = document.title, document.statements
    else:
        return None
    said = next((line for each in statements for line in (*each.points, each.text) if line), "")
    return shorten(f"{type(record).__name__} of {title}: {said}", 240, placeholder=" …")


def _model(record: Anatomy | Interventions | TrainingRun) -> Model:
    model = Model(record.name if isinstance(record, TrainingRun) else name(record.provenance.model))
    model.add(Source(record, Path()))
    return model


def runs_document(paths: Sequence[Path], places: Places | None = None) -> Document:
    """What the records in these folders say: a survey, what moved between two, a study, one model, or a comparison.

    places: those in its commands; the folders of these runs are known.
    """
    # A page is sent to others, to whom a whole path on this machine says nothing.
    given = {word: words for word, words in (places or {}).items() if not Path(words[0]).is_absolute()}
    return filled(_document(paths), {**_places(paths), **given})


def _places(paths: Sequence[Path]) -> dict[str, list[str]]:
    """The run or survey that commands speak of."""
    folders = [path.parent if path.is_file() else path for path in paths]
    kinds = (Interventions, TrainingRun, GraftRecord)
    run = next((folder for kind in kinds for folder in folders if (folder / kind.file).is_file()), folders[0])
    where = run.name if run.is_absolute() else str(run)
    return {word: [where] for word in ("RUN", "SURVEY")}


def _document(paths: Sequence[Path]) -> Document:
    named = paths
    paths = [run_folder(path, SurveyRecord.file, GraftRecord.file) for path in paths]
    surveys = [
        SurveyRecord.read_file(path / SurveyRecord.file) for path in paths if (path / SurveyRecord.file).is_file()
    ]
    if surveys:
        if len(surveys) != len(paths) or len(surveys) > 2:
            raise InputError("Give one survey for its atlas, two for what moved between them, or runs alone.")
        return moves_document(*surveys) if len(surveys) == 2 else atlas_document(surveys[0])
    if len(paths) == 1 and is_findings(paths[0]):
        return findings_document(paths[0])
    studies = read_studies(paths)
    document = study_document(studies) if studies else _models_document(paths)
    # By their names alone: a page is sent to others, whom the folders of this machine say nothing.
    names = [f"{study.study}-{study.preset}.json" for study in studies] or [path.resolve().name for path in named]
    document.command = " ".join(["spikesink report", *map(shlex.quote, names)])
    return document


def _models_document(paths: Sequence[Path]) -> Document:
    if len(paths) == 1 and (paths[0] / GraftRecord.file).is_file():
        return graft_document(GraftRecord.read(paths[0]))
    models = group(read_runs(paths))
    return model_document(models[0]) if len(models) == 1 else compare_document(models)
