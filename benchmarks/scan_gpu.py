"""A scan on a GPU against a plain SDPA forward of the same batch: make bench-gpu.

Time: the two alternate, and the figure is the median of the paired ratios, the device awaited. Memory: the peak above
the loaded model. First the importance of keys, by row blocks and by the fused attention, is compared with that of the
same weights in float32: row blocks round every score to the model's dtype, the fused attention does not.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from spikesink import load
from spikesink.access import AccessedModel, full_batch, fused_attention, observing, watch
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sinks import SinkMeasure
from spikesink.measure.spikes import SpikeMeasure

TOKENS_PER_BATCH = 16_384
ALLOWED = 1.5
"""Times as far from float32 as row blocks are that the fused attention may be."""


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


def farthest(measured: SinkMeasure, reference: SinkMeasure) -> float:
    """Largest difference of a key's importance over the block's largest, of all blocks."""
    return max(
        float((one.positions - other.positions).abs().max() / other.positions.abs().max())
        for one, other in zip(measured.blocks.values(), reference.blocks.values(), strict=True)
    )


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
    exact = load(options.model, device="cuda", dtype="float32")
    print(f"{accessed.name}, {options.dtype}, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| T | batch | time, scan / plain | memory, scan / plain | from float32: row blocks | fused |")
    print("| --- | --- | --- | --- | --- | --- |")
    for tokens in options.lengths:
        batch = max(1, TOKENS_PER_BATCH // tokens)
        ids = torch.randint(0, accessed.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))

        def scan(ids: torch.Tensor = ids, model: AccessedModel = accessed) -> SinkMeasure:
            sinks = SinkMeasure()
            with observing(model, [SpikeMeasure(), sinks, LossMeasure()]):
                watch(model, full_batch(ids))
            return sinks

        def plain(ids: torch.Tensor = ids) -> object:
            accessed.model.set_attn_implementation("sdpa")
            with torch.inference_mode():
                return accessed.model(input_ids=ids.to("cuda"), use_cache=False).logits

        in_float32, in_rows = scan(model=exact), scan()
        fused_attention.ASKED = True
        fused = scan()
        rounded, fused_too = (farthest(measured, in_float32) for measured in (in_rows, fused))
        seconds(plain)
        ratios = [seconds(scan) / seconds(plain) for _ in range(options.pairs)]
        memory = peak_mib(scan), peak_mib(plain)
        print(
            f"| {tokens} | {batch} | {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {memory[0] / memory[1]:.2f} x ({memory[0]:,.0f} MiB) | {rounded:.1e} | {fused_too:.1e} |",
            flush=True,
        )
        fused_attention.ASKED = False
        if fused_too > ALLOWED * rounded:
            sys.exit(f"The fused attention is {fused_too / rounded:.1f} x as far from float32 as row blocks are.")


if __name__ == "__main__":
    main()
