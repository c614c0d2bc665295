"""All channel norms ||U_k||_F by the closed form against the naive way, which builds every U_k.

The naive way is timed on a few channels and extrapolated to all of them; CPU seconds, so that other work on the machine
hardly matters. Run: make bench-amplifier, or python benchmarks/amplifier.py [--skip-large].
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from spikesink.access import load
from spikesink.access.gated_ffn import gated_ffns
from spikesink.measure.amplifier import amplifier, channel_norms
from spikesink.weights import GatedFFN

REPEATS = 3


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def naive(ffn: GatedFFN, channels: list[int]) -> torch.Tensor:
    return torch.stack([amplifier(ffn, channel).norm() for channel in channels])


def compare(name: str, ffn: GatedFFN, sample: list[int], repeats: int) -> None:
    """Paired runs: closed form for all channels, naive for the sample."""
    closed, per_channel, ratios = [], [], []
    naive(ffn, sample[:1])
    for _ in range(repeats):
        closed.append(cpu_seconds(lambda: channel_norms(ffn)))
        per_channel.append(cpu_seconds(lambda: naive(ffn, sample)) / len(sample))
        ratios.append(closed[-1] / (per_channel[-1] * ffn.down.shape[0]))
    # A float32 norm of 16 million elements is itself wrong by 8e-4, so the truth is summed in float64.
    true = torch.stack([amplifier(ffn, channel).double().norm() for channel in sample])
    wrong = ((channel_norms(ffn)[sample].double() - true) / true).abs().max()
    print(
        f"{name}: d {ffn.d_model}, d_ffn {ffn.d_ffn}: closed form {statistics.median(closed):.3g} s for all channels; "
        f"naive {statistics.median(per_channel):.3g} s a channel on a sample of {len(sample)}, extrapolated to "
        f"{statistics.median(per_channel) * ffn.down.shape[0]:,.4g} s; closed / naive = "
        f"{statistics.median(ratios):.3%} (pairs: {', '.join(f'{ratio:.3%}' for ratio in ratios)}); largest relative "
        f"difference {float(wrong):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-large", action="store_true", help="leave out the FFN of 4096 x 11008")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU seconds")
    accessed = load()
    for block in (24, 58):
        (ffn,) = gated_ffns(accessed, block)
        compare(f"embedded model, block {block}", ffn, list(range(0, 576, 36)), REPEATS)
    seconds = cpu_seconds(
        lambda: [channel_norms(gated_ffns(accessed, block)[0]) for block in range(2, accessed.n_blocks + 1, 2)]
    )
    print(f"embedded model, all {accessed.n_layers} FFNs with extraction and its check: {seconds:.3g} s")
    if not options.skip_large:
        generator = torch.Generator().manual_seed(0)
        shapes = ((11008, 4096), (11008, 4096), (4096, 11008))
        gate, up, down = (torch.randn(*shape, generator=generator) for shape in shapes)
        compare("Llama-2-7B-shaped, random weights", GatedFFN(gate, up, down, "silu"), [0, 2048], 1)


if __name__ == "__main__":
    main()
