"""Attention on a GPU for observers that need no rows: FlexAttention twice, no map and no row block in memory.

The first call gives the output and each query's log-sum-exp. In the second, keys and queries change places and every
score loses its query's log-sum-exp: what that call has as a key's log-sum-exp is the log of the sum of its weights
over queries. Compiled for CUDA; elsewhere the same arithmetic in plain operations, which is what the tests run. One GPU
has run it (docs/scan.md), so it is used only where SPIKESINK_FUSED_ATTENTION=1 asks for it; `make bench-gpu` compares
and times.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from spikesink.access.masks import MaskPlan
from spikesink.access.tiled_attention import Problem, Sums

ASKED = os.environ.get("SPIKESINK_FUSED_ATTENTION") == "1"
DUMMY_WIDTH = 16
"""Channels of the values in the second call, whose output nobody reads."""


def attend_fused(problem: Problem, ends: list[int]) -> tuple[Tensor, Sums]:
    """Output (batch, head, token, d_value), and sums over the queries before each of `ends` (ascending) but not before
    the one in front. Eq. 6-11."""
    query, key, sinks = problem.query, problem.key, problem.learned_sinks
    flex = _flex(query.device.type)

    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score if problem.softcap is None else problem.softcap * torch.tanh(score / problem.softcap)

    mask = block_mask(problem.plan, 0, query.shape[2], columns=False)
    output, seen = flex(
        query, key, problem.value, score_mod=capped, block_mask=mask, scale=problem.scaling,
        enable_gqa=problem.groups > 1, return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    normaliser, taken = seen.lse, torch.zeros_like(seen.lse)
    if sinks is not None:
        normaliser = torch.logaddexp(seen.lse, sinks[:, None])
        taken = (sinks[:, None] - normaliser).exp()
        output = output * (seen.lse - normaliser).exp()[..., None].to(output.dtype)

    def less_normaliser(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return capped(score, batch, head, row, column) - normaliser[batch, head, column]

    keys, nothing = key.repeat_interleave(problem.groups, 1), query[..., :DUMMY_WIDTH]
    mass, virtual, start = [], [], 0
    for stop in ends:
        mask = block_mask(problem.plan, start, stop, columns=True)
        _, summed = flex(
            keys, query, nothing, score_mod=less_normaliser, block_mask=mask, scale=problem.scaling,
            return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        mass.append(summed.lse.exp())
        virtual.append(taken[..., start:stop].sum(-1))
        start = stop
    shape = query.shape[:2]
    empty = (query.new_zeros(0, *shape, query.shape[2]), query.new_zeros(0, *shape))
    return output, Sums(torch.stack(mass), torch.stack(virtual)) if ends else Sums(*empty)


def block_mask(plan: MaskPlan, start: int, stop: int, *, columns: bool) -> BlockMask:
    """Which keys the queries in [start, stop) see; with `columns`, which of these queries see a key. Kept in the plan,
    which all blocks of a forward share."""

    # Numbers would be compiled in, a kernel for each of them.
    first, end = torch.tensor([start, stop], device=plan.device)

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        query, key = (column, row) if columns else (row, column)
        return plan.arguments["mask_function"](batch, head, query, key) & (first <= query) & (query < end)

    # A mask that is not plainly causal may differ by sequence (packed ones).
    make = partial(create_block_mask, visible, None if plan.plain_causal else plan.batch_size, None)
    return plan.kept(("block mask", start, stop, columns), partial(make, plan.q_length, plan.kv_length, plan.device))


@cache
def _flex(device: str) -> Callable[..., Any]:
    if device == "cuda":
        return torch.compile(flex_attention)

    def plain(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return flex_attention(query, key, value, **options)

    return plain
