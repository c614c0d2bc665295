"""Attention for observers that need no rows: outputs and sums over queries, in tiles that stay in the cache.

A tile is a block of queries of one sequence and one KV head, for all query heads of that KV head at once: scores up to
the last visible key, softmax in place, times V, column sums. Tiles are spread over threads, one thread an operation,
since a tile is too small to share. The same numbers as in row blocks, to the rounding of another order of sums.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from spikesink.access.masks import MaskPlan

TILE_ELEMENTS = 400_000
"""Scores in a tile; 1.6 MB. Of 64,000 to 1,000,000, tried for T = 64 to 8192 on a processor with 512 KB of second-level
cache a core (LOG.md), 256,000 to 512,000 were the fastest or near it at every T."""
MOST_ROWS = 256


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

    def work(share: list[tuple[int, int, int, int]]) -> Sums:
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


def _tiles(problem: Problem) -> list[tuple[int, int, int, int]]:
    """(first query, one past the last, sequence, KV head), in this order."""
    batch, _, tokens, _ = problem.query.shape
    rows = TILE_ELEMENTS // (problem.groups * tokens) // 16 * 16
    rows = min(MOST_ROWS, max(16, rows))
    return [
        (start, min(start + rows, tokens), sequence, kv_head)
        for start in range(0, tokens, rows)
        for sequence in range(batch)
        for kv_head in range(problem.key.shape[1])
    ]


class _Worker:
    """One thread's tiles, its buffers and its sums."""

    def __init__(self, problem: Problem, ends: list[int], output: Tensor) -> None:
        batch, heads, tokens, _ = problem.query.shape
        self.problem, self.ends, self.output = problem, ends, output
        self.mass = torch.zeros(len(ends), batch, heads, tokens)
        self.virtual = torch.zeros(len(ends), batch, heads)
        self._buffers: dict[str, Tensor] = {}
        self._invisible: tuple[int, int, Tensor] | None = None

    def run(self, tiles: list[tuple[int, int, int, int]]) -> Sums:
        for tile in tiles:
            self._tile(*tile)
        return Sums(self.mass, self.virtual)

    def _tile(self, start: int, stop: int, sequence: int, kv_head: int) -> None:
        problem, groups, rows = self.problem, self.problem.groups, stop - start
        low, high = problem.plan.key_range(start, stop)
        heads = slice(kv_head * groups, (kv_head + 1) * groups)
        query = self._buffer("query", groups, rows, problem.query.shape[-1])
        torch.mul(problem.query[sequence, heads, start:stop], problem.scaling, out=query)
        sinks = 0 if problem.learned_sinks is None else 1
        weights = self._buffer("weights", groups, rows, high - low + sinks)
        scores = weights[..., : high - low]
        torch.mm(query.flatten(0, 1), problem.key[sequence, kv_head, low:high].T, out=scores.flatten(0, 1))
        if problem.softcap is not None:
            scores.div_(problem.softcap).tanh_().mul_(problem.softcap)
        self._mask(scores, start, stop, low, high, sequence)
        if problem.learned_sinks is not None:
            weights[..., -1] = problem.learned_sinks[heads, None]
        torch.softmax(weights, -1, out=weights)
        written = self._buffer("output", groups, rows, problem.value.shape[-1])
        torch.mm(scores.flatten(0, 1), problem.value[sequence, kv_head, low:high], out=written.flatten(0, 1))
        self.output[sequence, heads, start:stop] = written
        before = 0
        for segment, end in enumerate(self.ends):
            first, last = max(start, before) - start, min(stop, end) - start
            before = end
            if first < last:
                self.mass[segment, sequence, heads, low:high] += scores[:, first:last].sum(1)
                if sinks:
                    self.virtual[segment, sequence, heads] += weights[:, first:last, -1].sum(1)

    def _mask(self, scores: Tensor, start: int, stop: int, low: int, high: int, sequence: int) -> None:
        """Minus infinity where a query must not look; in the plain causal case only the last square has such keys."""
        plan = self.problem.plan
        if self._invisible is None or self._invisible[:2] != (start, stop):
            first = start if plan.plain_causal else low
            self._invisible = (start, stop, ~plan.rows(start, stop, first, high)[:, 0])
        invisible = self._invisible[2]
        own = invisible[sequence if len(invisible) > 1 else 0]
        scores[..., -own.shape[-1] :].masked_fill_(own, float("-inf"))

    def _buffer(self, name: str, *shape: int) -> Tensor:
        size = shape[0] * shape[1] * shape[2]
        known = self._buffers.get(name)
        if known is None or known.numel() < size:
            known = self._buffers[name] = self.problem.query.new_empty(size)
        return known[:size].view(shape)
