"""Judge the studies of a folder anew from the records of their cells, by the rules and in the words as they stand.

Run: python tools/rejudge.py results. Trains and measures nothing. Studies by the rules of version 1 stay as they are.
"""

import sys
from pathlib import Path

from spikesink.records.study import StudyRecord
from spikesink.study import verdict
from spikesink.study.grid import load_grid
from spikesink.study.run import Study
from spikesink.train.recipe import Recipe


def rejudge(path: Path) -> bool:
    """Write the study of this record again; False where it is none of cells, or of earlier rules."""
    record = StudyRecord.read_file(path)
    if record.rules_version != verdict.VERSION or record.pretrained is not None:
        return False
    base = Recipe.model_validate(record.provenance.settings["recipe"])
    Study(record.study, load_grid(record.study)[1], base, path.parent).write()
    return True


if __name__ == "__main__":
    for found in sorted(Path(sys.argv[1]).glob("*-*.json")):
        print(found, "judged anew" if rejudge(found) else "left as it is")
