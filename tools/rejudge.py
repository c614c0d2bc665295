"""Judge the studies and sweeps of a folder anew from the records of their cells, grafts and levels, in the words of
now; studies by the rules that they began with, or the newest where those are no longer known.

Run: python tools/rejudge.py results. Trains and measures nothing. Studies by the rules of version 1 stay as they are,
since their cells lack what later rules judge.
"""

import sys
from pathlib import Path

from spikesink.analyse.dose import judged
from spikesink.intervene import INTERVENTIONS
from spikesink.records.interventions import Interventions
from spikesink.records.study import StudyRecord
from spikesink.records.training import GraftRecord
from spikesink.study.grafts import study_of
from spikesink.study.grid import load_grid
from spikesink.study.run import Study, rules_version
from spikesink.train.recipe import Recipe


def rejudge(path: Path) -> str:
    """Write the study of this record again, unless it is of the first rules, or says the same; which."""
    record, before = StudyRecord.read_file(path), path.read_bytes()
    if record.rules_version == 1:
        return "left as it is"
    if record.study == "grafts":
        folder = path.parent / f"graft{record.preset.removeprefix(record.pretrained or '')}"
        records = [GraftRecord.read(run.parent) for run in sorted(folder.glob(f"*/{GraftRecord.file}"))]
        study_of(records, record.preset, rules_version(path)).write(path)
    else:
        base = Recipe.model_validate(record.provenance.settings["recipe"])
        Study(record.study, load_grid(record.study)[1], base, path.parent).write()
    if StudyRecord.read_file(path).model_dump(exclude={"timing"}) != record.model_dump(exclude={"timing"}):
        return "judged anew"
    path.write_bytes(before)
    return "says the same"


def rejudge_sweeps(folder: Path) -> str:
    """The same of a run of `intervene --dose`."""
    record = Interventions.read(folder)
    swept = [judged(INTERVENTIONS[dose.name], dose.levels) if dose.applicable else dose for dose in record.dose]
    if swept == record.dose:
        return "says the same"
    record.model_copy(update={"dose": swept}).save(folder, force=True)
    return "judged anew"


if __name__ == "__main__":
    for found in sorted(Path(sys.argv[1]).glob("*-*.json")):
        print(found, rejudge(found))
    for run in sorted(Path(sys.argv[1]).glob(f"dose/*/{Interventions.file}")):
        print(run.parent, rejudge_sweeps(run.parent))
