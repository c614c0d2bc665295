"""The vocabulary probe's early exit against whole forward passes of the same batches, in pairs; and the whole probe.

CPU seconds, so that other work on the machine hardly matters. Run: make bench-probe, or
python benchmarks/vocabulary_probe.py [--whole].
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from spikesink.access import full_batch, load, observing, run
from spikesink.access.capture import run_until
from spikesink.analyse.anatomy.vocabulary_probe import BATCH_TOKENS, probe_vocabulary

BLOCK = 24
PAIRS = 6


class Peak:
    def on_residual(self, block, hidden):
        if block == BLOCK:
            self.values = hidden.abs().amax(-1)


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="probe the whole vocabulary too and count")
    options = parser.parse_args()
    accessed = load()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU seconds, batches of {BATCH_TOKENS} x 1")
    ids = np.random.default_rng(0).permutation(accessed.vocab_size)
    ratios = []
    with observing(accessed, [Peak()]):
        for pair in range(PAIRS):
            batch = full_batch(torch.from_numpy(ids[pair * BATCH_TOKENS : (pair + 1) * BATCH_TOKENS, None]))
            early = cpu_seconds(lambda batch=batch: run_until(accessed, batch, BLOCK))
            whole = cpu_seconds(lambda batch=batch: run(accessed, batch))
            ratios.append(whole / early)
            print(f"pair {pair}: early exit {early:.3g} s, whole forward {whole:.3g} s, {ratios[-1]:.2f} x faster")
    print(f"median {statistics.median(ratios):.2f} x, smallest {min(ratios):.2f} x")
    if options.whole:
        started, processed = time.perf_counter(), time.process_time()
        probed = probe_vocabulary(accessed, BLOCK)
        wall, cpu = time.perf_counter() - started, time.process_time() - processed
        missing = probed.ids[~(probed.first > 1000)].tolist()
        print(
            f"whole vocabulary: {int((probed.first > 1000).sum()):,} of {len(probed.ids):,} exceed 1,000 after block "
            f"{BLOCK} at position 0, {int((probed.later > 1000).sum()):,} behind a random prefix; not: {missing}; "
            f"{wall:.0f} s, {cpu:.0f} CPU s"
        )


if __name__ == "__main__":
    main()
