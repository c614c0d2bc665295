"""A scan on a GPU against a plain SDPA forward of the same batch: make bench-gpu.

Time: the two alternate, and the figure is the median of the paired ratios, the device awaited. Memory: the peak above
the loaded model. The importance of keys by the fused attention is compared with that by row blocks first.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from spikesink import load
from spikesink.access import full_batch, fused_attention, observing, watch
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sinks import SinkMeasure
from spikesink.measure.spikes import SpikeMeasure

TOKENS_PER_BATCH = 16_384
ALLOWED = 2e-2
"""Largest difference of a key's importance, relative to the largest, that bf16 weights may make."""


def seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_mib(work: Callable[[], object]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="As spikesink scan takes it; the embedded model by default.")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048, 8192])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("No GPU that PyTorch can use; nothing measured.")
    accessed = load(options.model, device="cuda", dtype=options.dtype)
    print(f"{accessed.name}, {options.dtype}, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| T | batch | time, scan / plain | memory, scan / plain | largest difference from row blocks |")
    print("| --- | --- | --- | --- | --- |")
    for tokens in options.lengths:
        batch = max(1, TOKENS_PER_BATCH // tokens)
        vocabulary = accessed.model.get_input_embeddings().num_embeddings
        ids = torch.randint(0, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0))

        def scan(ids: torch.Tensor = ids) -> SinkMeasure:
            sinks = SinkMeasure()
            with observing(accessed, [SpikeMeasure(), sinks, LossMeasure()]):
                watch(accessed, full_batch(ids))
            return sinks

        def plain(ids: torch.Tensor = ids) -> object:
            accessed.model.set_attn_implementation("sdpa")
            with torch.inference_mode():
                return accessed.model(input_ids=ids.to("cuda"), use_cache=False).logits

        in_rows = scan()
        fused_attention.ASKED = True
        fused = scan()
        difference = max(
            float((one.positions - other.positions).abs().max() / other.positions.abs().max())
            for one, other in zip(fused.blocks.values(), in_rows.blocks.values(), strict=True)
        )
        seconds(plain)
        ratios = [seconds(scan) / seconds(plain) for _ in range(options.pairs)]
        memory = peak_mib(scan), peak_mib(plain)
        print(
            f"| {tokens} | {batch} | {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {memory[0] / memory[1]:.2f} x ({memory[0]:,.0f} MiB) | {difference:.1e} |",
            flush=True,
        )
        fused_attention.ASKED = False
        if difference > ALLOWED:
            sys.exit(f"The fused attention differs from row blocks by {difference:.1e}; at most {ALLOWED} is allowed.")


if __name__ == "__main__":
    main()
