"""A process that runs one cell: reads it from stdin, writes progress and the record to stdout, a JSON a line.

Run: python -m spikesink.study.worker FOLDER MODULE:FUNCTION, with what the function takes on stdin. It ends with the
process that started it: no cell outlives its study.
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


def main() -> None:
    """Exit code 0 with a record as the last line; 3 with an error as the last line."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        record = resolve(sys.argv[2])(sys.stdin.read(), Path(sys.argv[1]), _progress)
    except SpikesinkError as error:
        _say(error=str(error))
        sys.exit(3)
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
