"""The trained models of a study's cells, for the benchmarks that count something in them by variant."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from spikesink import load
from spikesink.access import full_batch, observing, watch
from spikesink.observer import Observer

SEQUENCES = 256


def held_out(cell: Path) -> np.ndarray:
    """Ids (sequence, token) that the cell did not train on."""
    return np.load(cell / "held_out.npy")[:SEQUENCES].astype(np.int64)


def show(cell: Path, ids: np.ndarray, observer: Observer) -> None:
    """One pass of the cell's model over these ids."""
    accessed = load(str(cell / "model"))
    with observing(accessed, [observer]):
        watch(accessed, full_batch(torch.from_numpy(ids)))


def by_variant(folder: Path, figures: Callable[[Path], Sequence[float]]) -> Iterator[tuple[str, np.ndarray]]:
    """Each variant of a study's `--work` folder, and the figures of its cells (seed, figure)."""
    for variant in dict.fromkeys(path.name.rpartition("-")[0] for path in sorted(folder.glob("*-*"))):
        cells = sorted(folder.glob(f"{variant}-[0-9]*"))
        yield variant, np.array([figures(cell) for cell in cells if (cell / "model").is_dir()])


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds of every figure, as cells of a markdown row."""
    shown = zip(values.mean(0), values.std(0, ddof=1), strict=True)
    return " | ".join(f"{mean:.1%} ± {deviation:.1%}" for mean, deviation in shown)
