"""A survey from list to atlas: what has a row is taken as it is, the others are planned, then run."""

import csv
import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from spikesink.atomic import file_sha256
from spikesink.errors import InputError, RecordError, SpikesinkError
from spikesink.observer import Progress
from spikesink.records import Provenance, Timing, check_output, package_versions
from spikesink.records.base import data_frame, rows_of
from spikesink.records.files import write_files
from spikesink.records.survey import ModelRows, SurveyRecord, SurveyRow
from spikesink.study.executors import Answer, Executor
from spikesink.survey import paper
from spikesink.survey.cell import ROW, Job, Wanted, corpus_of
from spikesink.survey.grid import INTERVENTIONS, ROUNDING, Asked, Spec, SurveyedModel, asked, check, names
from spikesink.survey.plan import Room, free, identity, planned, revisions_of, weight_bytes

RECORDS, RUNS, TABLE = "models", "runs", "survey"
ANY = (SpikesinkError, OSError)
"""What a model may end with before it is loaded; it is a row then."""


class Survey:
    """A survey in `out`: a record a (model, revision) in models/, the cells' own in runs/, survey.json beside them."""

    def __init__(
        self, spec: Spec, out: Path, *, keep: bool = True, loading: dict[str, Any] | None = None,
        sinks: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        check(spec)
        self.spec, self.out, self.keep = spec, out, keep
        self.loading, self.sinks = loading or {}, sinks or {}
        self.models = dict(zip(names(spec), spec.models, strict=True))
        self.room = Room(keep=keep)
        self.started = time.perf_counter()
        self.keys: set[tuple[object, ...]] = set()
        """Of the rows of its own cells, once they are planned."""
        self._texts: dict[str, str] = {}
        self._spent = 0.0

    def run(self, executor: Executor, progress: Progress) -> SurveyRecord:
        """Plan every model, then run what has no result and fits; tables are written anew after each.

        Raises InputError for a text that cannot be read, OutputError where nothing can be written.
        """
        check_output(self.out, "", force=True)
        self._repair()
        self.room.measure(executor.machines(free))
        jobs = self._planned(progress)
        self.write()
        progress("models", 0, len(jobs))
        by_name = {job.name: job for job in jobs}
        for done, record in enumerate(executor.run(jobs, self.out / RUNS, progress), start=1):
            self.room.learn(by_name[record.name], record.peak_bytes)
            self._keep(record)
            self.write()
            progress("models", done, len(jobs))
        return self.write()

    def _repair(self) -> None:
        """Put what cannot be read in models/ aside, and the rows that the cells' own folders have in its place."""
        for path in sorted((self.out / RECORDS).glob("*.json")):
            try:
                ModelRows.read_file(path)
            except RecordError as error:
                aside, cells = path.replace(path.with_suffix(".damaged")), self.out / RUNS / path.stem
                rows = {row.key: row for row in _kept(cells)}
                ModelRows(name=path.stem, rows=list(rows.values())).write(path)
                print(
                    f"'{path}' cannot be read and is now '{aside.name}'; the {len(rows)} rows in '{cells}' replace it. "
                    f"Others are measured again by the survey that asks for them. ({error})",
                    file=sys.stderr,
                )

    def _planned(self, progress: Progress) -> list[Job]:
        """What is to be run; a revision that cannot be had, or does not fit, gets rows that say so."""
        jobs = []
        for index, (name, model) in enumerate(self.models.items()):
            progress("plan", index, len(self.spec.models))
            cells = asked(self.spec, model)
            hashes = {cell: self._text_sha256(cell) for cell in cells}
            try:
                revisions = twice(revisions_of, model.model, list(model.revisions))
            except ANY as error:
                self.keys |= {cell.key(name, None) for cell in cells}
                self._refuse(name, None, cells, str(error), "failed")
                continue
            for revision in dict.fromkeys(revisions):
                self.keys |= {cell.key(name, revision) for cell in cells}
                try:
                    job = twice(self._job, model, name, revision, hashes)
                except ANY as error:
                    self._refuse(name, revision, cells, str(error), "failed")
                    continue
                if not job.wanted:
                    self._keep(ModelRows(name=job.name, rows=[]))
                    continue
                refusal = self.room.refusal(job)
                if refusal is None:
                    jobs.append(job)
                else:
                    self._refuse(name, revision, cells, refusal, "refused")
        progress("plan", len(self.spec.models), len(self.spec.models))
        return jobs

    def _job(self, model: SurveyedModel, name: str, revision: str | None, hashes: dict[Asked, str]) -> Job:
        plan = planned(model.model, revision, allow_pickle=bool(self.loading.get("allow_pickle")))
        options = {"loading": self.loading, "sinks": self.sinks, "measures": sorted(self.spec.measures)}
        folder = _file(name, revision)
        there = {row.identity for row in self._rows(folder) if row.status == "finished"}
        weights = weight_bytes(plan, list(model.dtype or self.spec.dtype))
        wanted = [Wanted(asked=cell, identity=identity(plan, cell, options, text)) for cell, text in hashes.items()]
        return Job(
            name=folder, model=name, source=plan.source, revision=revision, hub_revision=plan.hub_revision,
            commit=plan.commit, weights=weights, size=plan.size, download=plan.download, keep=self.keep,
            loading=self.loading, further=self.spec.further,
            interventions=INTERVENTIONS in self.spec.measures, rounding=ROUNDING in self.spec.measures,
            sinks=self.sinks, wanted=[one for one in wanted if one.identity not in there],
            place=str((self.out / RUNS / folder).absolute()),
        )  # fmt: skip

    def _text_sha256(self, cell: Asked) -> str:
        """Hash of a text's bytes; of a hub data set its name, whose revision belongs to it. Raises InputError."""
        text = cell.text
        if text.source not in self._texts:
            try:
                self._texts[text.source] = (
                    file_sha256(Path(text.path)) if text.path is not None and Path(text.path).is_file()
                    else text.source if text.dataset is not None
                    else corpus_of(cell).sha256 or text.source
                )  # fmt: skip
            except OSError as error:
                raise InputError(f"The text '{text.source}' cannot be read: {error.strerror}.") from None
        return self._texts[text.source]

    def _refuse(self, name: str, revision: str | None, cells: list[Asked], error: str, status: str) -> None:
        """Rows for what was not tried; those that are there stay, since a figure is worth more than a refusal."""
        there = {row.key for row in self._rows(_file(name, revision)) if row.status == "finished"}
        stay = sum(cell.key(name, revision) in there for cell in cells)
        if stay:
            label = name if revision is None else f"{name} @ {revision}"
            print(f"{label}: earlier rows stay ({stay}), but were not looked at again: {error}", file=sys.stderr)
        rows = [
            SurveyRow.model_validate(
                {**cell.model_dump(exclude={"text", "text_name", "sequences"}), "model": name, "revision": revision,
                 "text": cell.text_name, "status": status, "error": error, "identity": ""}
            )
            for cell in cells
        ]  # fmt: skip
        self._keep(ModelRows(name=_file(name, revision), rows=[row for row in rows if row.key not in there]))

    def _keep(self, record: ModelRows) -> None:
        """The record of a model with these rows in the place of older ones of the same cells."""
        rows = {row.key: row for row in [*self._rows(record.name), *record.rows]}
        self._spent += sum(row.seconds for row in record.rows)
        trained = [self._trained(row) for row in rows.values()]
        record.model_copy(update={"rows": trained}).write(self.out / RECORDS / f"{record.name}.json")

    def _trained(self, row: SurveyRow) -> SurveyRow:
        """The row with the tokens of its step, as this survey says, also where it was measured by an earlier one."""
        model = self.models.get(row.model)
        if model is None:
            return row
        tokens = row.step * model.tokens_per_step if row.step and model.tokens_per_step else None
        return row.model_copy(update={"tokens_trained": tokens})

    def _rows(self, name: str) -> list[SurveyRow]:
        path = self.out / RECORDS / f"{name}.json"
        return ModelRows.read_file(path).rows if path.exists() else []

    def write(self) -> SurveyRecord:
        """Everything that lies in the folder as JSON, CSV and, where it can be written, parquet."""
        record = self.summarise()
        record.write(self.out / SurveyRecord.file)
        rows = rows_of(record, "rows") if record.rows else []
        names = dict.fromkeys(name for row in rows for name in row)
        # A figure that a row lacks has one empty column, not three.
        columns = [name for name in names if f"{name}.value" not in names]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
        write_files(self.out, {f"{TABLE}.csv": table.getvalue().encode(), **_parquet(rows, columns)}, force=True)
        return record

    def summarise(self) -> SurveyRecord:
        """Of all models in the folder, in this survey's order; those of earlier ones after them."""
        rows = [row for record in self._records() for row in record.rows]
        order = {name: index for index, name in enumerate(self.models)}
        rows.sort(key=lambda row: (order.get(row.model, len(order)), row.model, row.step or 0, row.revision or ""))
        return SurveyRecord(
            rows=rows,
            paper=paper.compared(rows),
            provenance=Provenance(
                model={"name": "survey"},
                tokens={"texts": sorted({row.text for row in rows})},
                versions=package_versions(),
                settings={**self.spec.model_dump(mode="json", exclude={"models", "texts"}), **self.sinks},
            ),
            timing=Timing.now(forward_s=self._spent, total_s=time.perf_counter() - self.started),
        )

    def _records(self) -> Iterator[ModelRows]:
        for path in sorted((self.out / RECORDS).glob("*.json")):
            yield ModelRows.read_file(path)


def _kept(folder: Path) -> list[SurveyRow]:
    """The rows that processes have left in a model's folder, older ones first."""
    rows = []
    for path in sorted(folder.glob(f"*/{ROW}"), key=lambda path: path.stat().st_mtime):
        with suppress(OSError, ValueError):
            rows.append(SurveyRow.model_validate_json(path.read_text(encoding="utf-8")))
    return rows


def twice(ask: Callable[..., Answer], *given: Any) -> Answer:
    """What a function returns, called once more where it failed: a hub that did not answer may have come back."""
    with suppress(*ANY):
        return ask(*given)
    return ask(*given)


def _parquet(rows: list[dict[str, Any]], columns: list[str]) -> dict[str, bytes]:
    """The table as a parquet file, where pandas (with pyarrow) or polars can write one."""
    content = io.BytesIO()
    try:
        frame = data_frame([{name: row.get(name) for name in columns} for row in rows], columns)
        (frame.to_parquet if hasattr(frame, "to_parquet") else frame.write_parquet)(content)
    except (ImportError, InputError):
        return {}
    return {f"{TABLE}.parquet": content.getvalue()}


def _plain(value: Any) -> Any:
    """A cell of a CSV file; a text that a spreadsheet would run as a formula gets a quote in front."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _file(name: str, revision: str | None) -> str:
    """A file name of its own for each (model, revision), whatever characters these have."""
    label = name if revision is None else f"{name}-{revision}"
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in label).strip(".-")[:60]
    return f"{kept}-{hashlib.sha256(repr((name, revision)).encode()).hexdigest()[:8]}"
