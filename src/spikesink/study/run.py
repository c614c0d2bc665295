"""A study from grid to table: cells that have a record are taken as they are, the others are run."""

import time
from collections.abc import Iterator
from pathlib import Path

from spikesink.errors import InputError, RecordError
from spikesink.observer import Progress
from spikesink.records import Provenance, Timing, check_output, package_versions
from spikesink.records.files import write_files
from spikesink.records.study import CellCurves, CellFunction, CellRecord, StudyRecord
from spikesink.study import claims, table, verdict
from spikesink.study.cell import evaluation_sha256, is_run_of, measured_function
from spikesink.study.executors import Executor
from spikesink.study.grid import Cell, Grid, cell_of, cells, impossible
from spikesink.train.recipe import Recipe
from spikesink.train.streams import source_sha256


class Study:
    """A grid on a base recipe, its records in `out`/NAME-PRESET/ and its table beside that folder."""

    def __init__(
        self,
        name: str,
        grid: Grid,
        base: Recipe,
        out: Path,
        *,
        seeds: int = 3,
        only: list[str] | None = None,
        first_seed: int = 0,
    ) -> None:
        self.name, self.grid, self.base, self.out = name, grid, base, out
        self.cells = cells(name, grid, base, seeds, only, first_seed)
        self.left_out = impossible(grid, base)
        self.title = f"{name}-{base.name}"
        self.records = out / self.title
        self.started = time.perf_counter()
        self._texts: dict[tuple[str, int], str | None] = {}

    def run(self, executor: Executor, work: Path, progress: Progress) -> StudyRecord:
        """Run what has no result yet, in folders below `work`; the table is written anew after every cell.

        Raises InputError where a record belongs to another recipe, OutputError where nothing can be written.
        """
        check_output(self.records, "", force=True)
        check_output(work / self.title, "", force=True, option="--work")
        where = (executor.threads, executor.device)
        todo = [cell for cell in self.cells if not self._has_result(cell, *where)]
        for cell in self._others():
            self._has_result(cell, *where)
        shared = {cell.name: next(self._elsewhere(cell, *where), None) for cell in todo}
        for record in filter(None, shared.values()):
            self._keep(record)
        todo = [cell for cell in todo if shared[cell.name] is None]
        self._complete(work, where, progress)
        total = len(self.cells)
        progress(f"{self.title}: cells", total - len(todo), total)
        for left, record in enumerate(executor.run(todo, work / self.title, progress), start=1):
            self._keep(record)
            self.write()
            progress(f"{self.title}: cells", total - len(todo) + left, total)
        return self.write()

    def _complete(self, work: Path, where: tuple[int, str], progress: Progress) -> None:
        """Give records of earlier versions what they lack: from the same run in another study, or measured anew where
        the trained model is still there."""
        from spikesink.train.run import MODEL

        for cell in self.cells:
            if not self._path(cell).exists():
                continue
            record, folder = CellRecord.read_file(self._path(cell)), work / self.title / cell.name
            if record.status != "finished" or _is_whole(record.function):
                continue
            others = (other for other in self._elsewhere(cell, *where) if other.curves == record.curves)
            function = next((other.function for other in others if _is_whole(other.function)), None)
            if function is None and (folder / MODEL).is_dir() and is_run_of(record, folder):
                function = measured_function(cell, folder, progress)
            if function is not None:
                self._keep(record.model_copy(update={"function": function}))

    def write(self) -> StudyRecord:
        """Make table and verdicts from the records, and write them as JSON, markdown, CSV and LaTeX."""
        study = self.summarise()
        study.write(self.out / f"{self.title}.json")
        forms = {"md": table.markdown, "csv": table.comma_separated, "tex": table.latex}
        for suffix, form in forms.items():
            write_files(self.out, {f"{self.title}.{suffix}": form(study).encode()}, force=True)
        return study

    def summarise(self) -> StudyRecord:
        """The study as a record, from the records of all cells that have one: also of seeds not asked for now."""
        finished = self.finished()
        rows = table.rows(self.grid, self.base, finished)
        of_baseline = [record for record in finished if record.variant == self.grid.baseline]
        version = rules_version(self.out / f"{self.title}.json")
        rules = claims.FunctionRules()
        baseline = next((row for row in rows if row.variant == self.grid.baseline), None)
        verdicts = [] if baseline is None else verdict.verdicts(rows, baseline.variant, verdict.RULES[version])
        return StudyRecord(
            study=self.name,
            preset=self.base.name,
            about=self.grid.about,
            baseline=self.grid.baseline,
            pretrained=self.base.pretrained,
            rows=rows,
            verdicts=verdicts,
            claims=claims.judged(
                claims.claims(self.grid.claims, verdicts),
                of_baseline,
                rules,
                spikes=baseline is not None and verdict.has_spikes(baseline),
            ),
            rules={**verdict.rules_as_numbers(verdict.RULES[version]), **verdict.rules_as_numbers(rules)},
            rules_version=version,
            errors=verdict.errors(finished),
            left_out=self.left_out,
            cells=[CellCurves(variant=cell.variant, seed=cell.seed, curves=cell.curves) for cell in finished],
            provenance=Provenance(
                model={"name": self.title, "model_type": "spikesink_decoder"},
                tokens={"source": self.base.data.model_dump(mode="json")},
                versions=package_versions(),
                settings={"recipe": self.base.model_dump(mode="json", exclude={"running"})},
            ),
            timing=Timing.now(
                forward_s=sum(record.timing.total_s for record in finished),
                total_s=time.perf_counter() - self.started,
            ),
        )

    def finished(self) -> list[CellRecord]:
        """The records of this study's folder, in the order of variants and seeds."""
        order = list(self.grid.variants)
        records = [CellRecord.read_file(path) for path in self.records.glob("*.json")]
        known = [record for record in records if record.variant in order]
        return sorted(known, key=lambda record: (order.index(record.variant), record.seed))

    def _others(self) -> list[Cell]:
        """The cells of records that stand in the table without being asked for now."""
        asked = {(cell.variant, cell.seed) for cell in self.cells}
        kept = {(record.variant, record.seed) for record in self.finished()}
        return [cell_of(self.name, self.grid, self.base, *one) for one in sorted(kept - asked)]

    def _path(self, cell: Cell) -> Path:
        return self.records / f"{cell.name}.json"

    def _keep(self, record: CellRecord) -> None:
        record.write(self.records / f"{record.variant}-{record.seed}.json")

    def _has_result(self, cell: Cell, threads: int, device: str) -> bool:
        """Whether a record says what came out; one of another recipe, device or number of threads is in the way.

        Rounding decides as much as the seed, and device and number of threads decide the rounding.
        """
        if not self._path(cell).exists():
            return False
        record = CellRecord.read_file(self._path(cell))

        def in_the_way(
            made: str, way_out: str = "choose another --out, or another name with --set name=NAME"
        ) -> InputError:
            return InputError(f"'{self._path(cell)}' was {made}; {way_out}.")

        if record.recipe_sha256 != cell.recipe.sha256():
            raise in_the_way(f"made with another recipe than this study's '{cell.name}'")
        if record.status == "failed":
            return False
        measured_on = record.provenance.tokens.get("evaluation_sha256")
        if measured_on not in (None, evaluation_sha256(cell.base)):
            raise in_the_way("measured on other held-out sequences than this study's (data of another preset)")
        if not self._same_text(record, cell):
            raise in_the_way("made on another text than data.source gives now (a file that changed, or another Python)")
        made_with, made_on = _trained_on(record)
        if made_on != device:
            raise in_the_way(f"made on '{made_on}', this study runs on '{device}'")
        if made_with != threads:
            raise in_the_way(
                f"made with {made_with} threads, this study runs with {threads}",
                f"pass --threads {made_with}, or choose another --out",
            )
        return True

    def _same_text(self, record: CellRecord, cell: Cell) -> bool:
        """Whether a record's text is the one that the cell would train on, as far as the record says it."""
        known = record.provenance.tokens.get("source_sha256")
        if known is None:
            return True
        source = (cell.recipe.data.source.model_dump_json(), cell.recipe.model.vocab_size)
        if source not in self._texts:
            self._texts[source] = source_sha256(cell.recipe)
        return self._texts[source] in (known, None)

    def _elsewhere(self, cell: Cell, *trained_on: object) -> Iterator[CellRecord]:
        """The same run in the studies of the same output folder, under this one's name: a baseline is run once."""
        wanted = (cell.recipe.sha256(), evaluation_sha256(cell.base), trained_on)
        for path in sorted(self.out.glob(f"*/*-{cell.seed}.json")):
            try:
                record = CellRecord.read_file(path)
            except RecordError:
                continue
            measured_on = record.provenance.tokens.get("evaluation_sha256")
            same_run = (record.recipe_sha256, measured_on, _trained_on(record)) == wanted
            if record.status != "failed" and same_run and self._same_text(record, cell):
                yield record.model_copy(update={"study": self.name, "preset": self.base.name, "variant": cell.variant})


def rules_version(path: Path) -> int:
    """Of the study in this file, if these rules are still known, else the newest: seen figures do not choose theirs."""
    try:
        begun_with = StudyRecord.read_file(path).rules_version
    except RecordError:
        return verdict.VERSION
    return begun_with if begun_with in verdict.RULES else verdict.VERSION


def _is_whole(function: CellFunction | None) -> bool:
    """Whether nothing is missing that records of today have."""
    return function is not None and function.attention_behind is not None


def _trained_on(record: CellRecord) -> tuple[int, str]:
    """CPU threads, 0 where torch chose, and device that a cell was trained with; before it was said, a CPU."""
    settings = record.provenance.settings
    return int(settings.get("threads") or 0), str(settings.get("device", "cpu"))
