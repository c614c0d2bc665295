"""What skipping pinned tokens saves, over paired forward passes, and that it changes nothing."""

import time

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, Batch, full_batch, observing, run
from spikesink.analyse import bootstrap
from spikesink.analyse.dissociation import Bench
from spikesink.analyse.passes import default_batch_size
from spikesink.errors import DoesNotApplyError, UnsupportedModelError
from spikesink.intervene import Found, pin_spikes
from spikesink.records.interventions import Skipping

PAIRS = 6
DIFFERENCE_MAX = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
"""By dtype: largest relative difference of the logits that rounding makes, with spikes of thousands."""
STAGE = "skip pinned tokens"


def measure_skipping(bench: Bench) -> Skipping:
    """Pin with and without skipping, in turn, on the first batch; not applicable where the logits are not the same."""
    accessed, found = bench.accessed, bench.found
    tokens = bench.ids.shape[1]
    batch = full_batch(bench.ids[: bench.batch_size or default_batch_size(tokens)])
    seconds: dict[bool, list[float]] = {False: [], True: []}
    logits: dict[bool, Tensor] = {}
    try:
        for pair in range(PAIRS):
            bench.progress(STAGE, pair, PAIRS)
            order = (False, True) if pair % 2 else (True, False)
            for skip in order:
                logits[skip], elapsed = _timed(accessed, found, batch, skip)
                seconds[skip].append(elapsed)
        bench.progress(STAGE, PAIRS, PAIRS)
    except (DoesNotApplyError, UnsupportedModelError) as reason:
        return Skipping(applicable=False, reason=str(reason))
    difference = float((logits[True] - logits[False]).abs().max() / logits[False].abs().max())
    if not difference <= DIFFERENCE_MAX.get(accessed.dtype, DIFFERENCE_MAX[torch.bfloat16]):
        reason = f"skipping changes the logits by {difference:.1g} (relative): something needs every token"
        return Skipping(applicable=False, reason=reason)
    left_out = fewest_spikes(accessed, found, batch)
    layers = skipped_layers(accessed, found)
    return Skipping(
        tokens_skipped=float(left_out),
        layers=layers,
        share_of_layer_tokens=left_out * layers / (tokens * accessed.n_layers),
        seconds_saved=bootstrap.estimate(_saved, seconds[True], seconds[False]),
        largest_difference=difference,
    )


def _saved(skipping: np.ndarray, pinning: np.ndarray, axis: int = -1) -> np.ndarray:
    # Medians: other work on the machine slows single passes down several times.
    return 1 - np.median(skipping, axis=axis) / np.median(pinning, axis=axis)


def _timed(accessed: AccessedModel, found: Found, batch: Batch, skip: bool) -> tuple[Tensor, float]:
    """Logits and seconds of one forward, without the making of the constants' keys."""
    with pin_spikes(accessed, found, skip=skip, max_tokens=batch.ids.shape[1]), observing(accessed, []):
        started = time.perf_counter()
        logits = run(accessed, batch)
        if logits.is_cuda:
            torch.cuda.synchronize()
        return logits, time.perf_counter() - started


def fewest_spikes(accessed: AccessedModel, found: Found, batch: Batch) -> int:
    """Spike tokens of the row that has the fewest: what every row of the batch can leave out."""

    class Count:
        fewest = 0

        def on_residual(self, block: int, hidden: Tensor) -> None:
            if block == found.edit_block:
                self.fewest = int(found.is_spike(hidden).sum(1).min())

    count = Count()
    with observing(accessed, [count]):
        run(accessed, batch)
    return count.fewest


def skipped_layers(accessed: AccessedModel, found: Found) -> int:
    """Layers that lie wholly between the step blocks."""
    until = found.step_down_block or accessed.n_blocks + 1
    first = [layer.attention.block for layer in accessed.layers]
    return sum(found.edit_block < block and block + 1 < until for block in first)
