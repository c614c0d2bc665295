"""A process that runs cells one after another: each a line of stdin, answered by lines of progress and a last one.

Run: python -m spikesink.study.worker MODULE:FUNCTION; a line is JSON: a folder, and what the function takes. What it
writes to stderr goes to worker.log in that folder. It ends with its stdin, or with the process that started it: no cell
outlives its study.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from spikesink.errors import SpikesinkError
from spikesink.measures import resolve

LOG = "worker.log"


def main() -> None:
    """The last line of a cell says its record, or its error."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    runner = resolve(sys.argv[1])
    for line in sys.stdin:
        folder, packed = json.loads(line)
        with (Path(folder) / LOG).open("a") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            record = runner(packed, Path(folder), _progress)
        except SpikesinkError as error:
            _say(error=str(error))
        else:
            _say(record=record.model_dump(mode="json", by_alias=True))


def _progress(stage: str, done: int, total: int) -> None:
    _say(progress=[stage, done, total])


def _say(**content: Any) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
