"""Hub ids: the commit that a revision stands for, and its weights in the local cache before anything is built of them.

What is fetched is what transformers would fetch, by its own functions and from its own cache: safetensors before
pickles, pickles only where asked for. Everything else is then loaded at that same commit.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils.hub import cached_file, cached_files

from spikesink.access.checkpoint import Checkpoint, check_config_size
from spikesink.access.stored import shards_of, weight_names
from spikesink.observer import Progress
from spikesink.reach import check_reachable

MIB = 2**20


def pinned(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint at the commit that its revision (default main) stands for now; others as they are.

    Raises ModelError for what is no config, OSError where the hub, or offline its cache, does not have it.
    """
    if checkpoint.local:
        return checkpoint
    check_reachable(str(checkpoint.source), checkpoint.revision)
    config = cached_file(checkpoint.source, "config.json", revision=checkpoint.revision)
    if config is None:
        return checkpoint
    check_config_size(Path(config))
    # The cache keeps a commit's files in snapshots/COMMIT.
    return replace(checkpoint, commit=Path(config).parent.name)


def fetched(checkpoint: Checkpoint, config: Any, allow_pickle: bool, progress: Progress) -> Checkpoint:
    """The checkpoint with its weights on disk; as it is where there are none that may be read, which loading explains.

    Raises ModelError for an index that names files it must not, OSError where a download fails.
    """
    if checkpoint.local or checkpoint.commit is None:
        return checkpoint
    options: dict[str, Any] = {"revision": checkpoint.commit, "tqdm_class": _reporting(progress)}
    for name in weight_names(getattr(config, "transformers_weights", None), allow_pickle):
        first = cached_file(checkpoint.source, name, _raise_exceptions_for_missing_entries=False, **options)
        if first is not None:
            break
    else:
        return checkpoint
    files = [first]
    if first.endswith(".index.json"):
        files += cached_files(checkpoint.source, shards_of(Path(first), allow_pickle), **options) or []
    return replace(checkpoint, folder=Path(first).parent, weights=tuple(map(Path, files)))


def _reporting(progress: Progress) -> type[tqdm]:
    """A bar that draws nothing and reports mebibytes instead."""
    furthest = 0

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._bytes = options.get("unit") == "B"
            # Said outright, since the environment may turn bars off, and a bar that is off counts nothing.
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO(), "mininterval": 60})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            drawn = super().update(n)
            # Of a download there may be two: bytes that came, and bytes that lie on the disk.
            if self._bytes and self.total and self.n >= furthest:
                furthest = self.n
                progress("download, MiB", int(self.n) // MIB, -(-int(self.total) // MIB))
            return drawn

    return Reporting
