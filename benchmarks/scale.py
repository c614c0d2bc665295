"""How memory grows with sequences and with length, and a plan for what nobody here could allocate. Run: make scale

1. 1, 1,000 and 100,000 sequences through a tiny model: the peak above the token ids and the model;
2. sequences of up to 32,768 tokens on the embedded model's shape (SmolLM2-135M: d 576, 9 heads, 3 KV heads, 49,152
   tokens), with fewer layers where said, beside the logits that any forward pass makes;
3. the plan of a model of 70 B parameters, and what planning it takes.

Each measurement is a process of its own; its peak is the kernel's (VmHWM), reset before the pass.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from scaling import SEVENTY_B, alone, embedded_shape

MIB = 2**20


def said(cells: tuple) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def sequences(counts: list[int], tokens: int) -> None:
    said(("sequences", "tokens each", "ids, MiB", "peak above ids and model, MiB", "s"))
    said(("---",) * 5)
    for count in counts:
        peak, seconds = timed("peak_of_scan", "tiny", count, tokens)
        said((f"{count:,}", tokens, f"{8 * count * tokens / MIB:.1f}", f"{peak / MIB:.0f}", f"{seconds:.0f}"))


def lengths(tokens: list[int], layers: int) -> None:
    shape = embedded_shape(layers)
    said((f"T ({layers} of 30 layers)", "logits, MiB", "one map of one layer, MiB", "peak above the model, MiB", "s"))
    said(("---",) * 5)
    for length in tokens:
        peak, seconds = timed("peak_of_scan", shape, 1, length)
        logits = 4 * length * shape["vocab_size"] / MIB
        maps = 4 * shape["num_attention_heads"] * length**2 / MIB
        said((f"{length:,}", f"{logits:,.0f}", f"{maps:,.0f}", f"{peak / MIB:,.0f}", f"{seconds:.0f}"))


def timed(measure: str, *arguments: Any) -> tuple[int, float]:
    started = time.perf_counter()
    return alone(measure, *arguments), time.perf_counter() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sequences", type=int, nargs="*", default=[1, 1_000, 100_000])
    options.add_argument("--tokens", type=int, default=16)
    options.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192, 32768])
    options.add_argument("--layers", type=int, default=2)
    given = options.parse_args()
    sequences(given.sequences, given.tokens)
    if given.lengths:
        print()
        lengths(given.lengths, given.layers)
    print()
    peak, seconds = timed("peak_of_plan", SEVENTY_B)
    print(f"Plan of 70 B parameters: {peak / MIB:.0f} MiB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
