"""Attention for observers that need no rows: outputs and sums over queries, in tiles that stay near the cache.

A tile is a block of queries of one sequence and one KV head, for all query heads of that KV head at once, or, where
sequences are short, of several sequences and all their heads: scores up to the last visible key, softmax in place,
times V, column sums. Tiles are spread over threads, one thread an operation, since a tile is too small to share. The
same numbers as in row blocks, to the rounding of another order of sums.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from spikesink.access.masks import MaskPlan, hide

TILE_ELEMENTS = 600_000
"""Scores in a tile; 2.4 MB. The fastest, or near it, at T = 64 to 4096 on a processor with 1 MB of second-level cache a
core, of 200,000 to 1,600,000; 256,000 to 512,000 on one with 512 KB (LOG.md)."""
MOST_ROWS = 128
LEAST_ROWS = 192
"""Rows of a matrix product, those of all heads of a group; with fewer, what a product does once for its keys takes
longer than scores that leave the cache (LOG.md)."""


@dataclass(frozen=True)
class Problem:
    """Query (batch, head, token, d), key and value (batch, kv_head, token, d); float32 on the CPU, without padding.

    On a GPU of any floating dtype.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    plan: MaskPlan
    scaling: float
    softcap: float | None
    learned_sinks: Tensor | None
    """(head,): a score that every query also gives to no key."""

    @property
    def groups(self) -> int:
        return self.query.shape[1] // self.key.shape[1]


@dataclass(frozen=True)
class Sums:
    """Over the queries of each segment: mass (segment, batch, head, key); of learned sinks (segment, batch, head)."""

    mass: Tensor
    virtual: Tensor


def segments(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) cut at the powers of two."""
    while start < stop:
        end = min(stop, 1 << start.bit_length()) if start else min(stop, 1)
        yield start, end
        start = end


def attend_tiled(problem: Problem, ends: list[int]) -> tuple[Tensor, Sums]:
    """Output (batch, head, token, d_value), and sums over the queries before each of `ends` (ascending) but not before
    the one in front. Eq. 6-11."""
    batch, heads, tokens, _ = problem.query.shape
    # Laid out as the output projection reads it.
    output = problem.value.new_empty(batch, tokens, heads, problem.value.shape[-1]).transpose(1, 2)
    threads = torch.get_num_threads()
    tiles = _tiles(problem)
    shares = [share for worker in range(threads) if (share := tiles[worker::threads])]
    if len(shares) == 1:
        return output, _Worker(problem, ends, output).run(shares[0])
    inference = torch.is_inference_mode_enabled()

    def work(share: list[_Tile]) -> Sums:
        # Both are settings of the thread.
        torch.set_num_threads(1)
        with torch.inference_mode(inference), torch.no_grad():
            return _Worker(problem, ends, output).run(share)

    try:
        with ThreadPoolExecutor(len(shares)) as pool:
            # Added in the order of the shares, so that two runs give the same.
            first, *others = pool.map(work, shares)
    finally:
        # What a worker sets is also what every thread that starts later begins with.
        torch.set_num_threads(threads)
    mass, virtual = first.mass, first.virtual
    for other in others:
        mass, virtual = mass + other.mass, virtual + other.virtual
    return output, Sums(mass, virtual)


@dataclass(frozen=True)
class _Tile:
    """Queries [start, stop) of some sequences and some KV heads."""

    start: int
    stop: int
    sequences: slice
    kv_heads: slice


def _tiles(problem: Problem) -> list[_Tile]:
    """By queries, then by sequence."""
    batch, _, tokens, _ = problem.query.shape
    kv_heads = problem.key.shape[1]
    rows = max(TILE_ELEMENTS // tokens, LEAST_ROWS) // problem.groups // 16 * 16
    rows = min(MOST_ROWS, tokens, max(16, rows))
    # Pairs of a sequence and a KV head: all of some sequences, or one.
    pairs = TILE_ELEMENTS // (problem.groups * rows * tokens)
    together, heads = (pairs // kv_heads, kv_heads) if pairs >= kv_heads else (1, 1)
    return [
        _Tile(start, min(start + rows, tokens), slice(first, min(first + together, batch)), slice(head, head + heads))
        for start in range(0, tokens, rows)
        for first in range(0, batch, together)
        for head in range(0, kv_heads, heads)
    ]


class _Worker:
    """One thread's tiles, its buffers and its sums."""

    def __init__(self, problem: Problem, ends: list[int], output: Tensor) -> None:
        batch, heads, tokens, _ = problem.query.shape
        self.problem, self.ends, self.output = problem, ends, output
        self.mass = torch.zeros(len(ends), batch, heads, tokens)
        self.virtual = torch.zeros(len(ends), batch, heads)
        self._buffers: dict[str, Tensor] = {}
        self._last: tuple[int, int, Tensor] | None = None

    def run(self, tiles: list[_Tile]) -> Sums:
        for tile in tiles:
            self._tile(tile)
        return Sums(self.mass, self.virtual)

    def _tile(self, tile: _Tile) -> None:
        problem, plan, groups = self.problem, self.problem.plan, self.problem.groups
        start, stop, sequences, kv_heads = tile.start, tile.stop, tile.sequences, tile.kv_heads
        heads = slice(kv_heads.start * groups, kv_heads.stop * groups)
        low, high = plan.key_range(start, stop)
        keys, sinks = high - low, 0 if problem.learned_sinks is None else 1
        asked = problem.query[sequences, heads, start:stop]
        # Matrices of a batched product: one of each sequence and KV head, with the rows of all heads of its group.
        pairs = asked.shape[0] * asked.shape[1] // groups, groups * (stop - start)
        query = self._buffer("query", *pairs, asked.shape[-1])
        torch.mul(asked, problem.scaling, out=query.view(asked.shape))
        weights = self._buffer("weights", *pairs, keys + sinks)
        scores, by_head = weights[..., :keys], weights.view(*asked.shape[:3], keys + sinks)
        torch.bmm(query, problem.key[sequences, kv_heads, low:high].flatten(0, 1).mT, out=scores)
        if problem.softcap is not None:
            scores.div_(problem.softcap).tanh_().mul_(problem.softcap)
        limits = self._limits(start, stop, low, high)
        hide(by_head[..., :keys], limits[sequences] if len(limits) > 1 else limits)
        if problem.learned_sinks is not None:
            by_head[..., -1] = problem.learned_sinks[heads, None]
        torch.softmax(weights, -1, out=weights)
        written = self._buffer("output", *pairs, problem.value.shape[-1])
        torch.bmm(scores, problem.value[sequences, kv_heads, low:high].flatten(0, 1), out=written)
        self.output[sequences, heads, start:stop] = written.view(*asked.shape[:3], -1)
        before = 0
        for segment, end in enumerate(self.ends):
            first, last = max(start, before) - start, min(stop, end) - start
            before = end
            if first < last:
                summed = by_head[:, :, first:last].sum(2)
                self.mass[segment, sequences, heads, low:high] += summed[..., :keys]
                if sinks:
                    self.virtual[segment, sequences, heads] += summed[..., -1]

    def _limits(self, start: int, stop: int, low: int, high: int) -> Tensor:
        """Those of the plan; consecutive tiles have the same queries."""
        if self._last is None or self._last[:2] != (start, stop):
            self._last = start, stop, self.problem.plan.limits(start, stop, low, high)
        return self._last[2]

    def _buffer(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        known = self._buffers.get(name)
        if known is None or known.numel() < size:
            known = self._buffers[name] = self.problem.query.new_empty(size)
        return known[:size].view(shape)
