"""The linear maps inside every block, found by running the model once: which read the residual, which write it.

A block's linears that a forward calls are its input projections, but for the last, which writes: `o_proj` and
`down_proj` in most families. Whatever does not fit (fused experts, even beside a shared one, projections of other
sizes) has no sites.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spikesink.access.blocks import BlockSites
from spikesink.access.capture import run
from spikesink.access.model import AccessedModel
from spikesink.observer import full_batch

KINDS = ("attention_in", "attention_out", "ffn_in", "down_proj")
REST_MAX = 0.02
"""Share of an FFN's output that may come from elsewhere than its last linear: rounding, in the coarsest dtype."""
Called = tuple[nn.Module, Tensor]
"""A linear map and what it gave."""


@dataclass(frozen=True)
class LinearSite:
    """One linear map of a block. `kind`: attention_in (q, k, v), attention_out (o), ffn_in (gate, up) or down_proj."""

    block: int
    kind: str
    name: str
    module: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module.weight)

    @property
    def input_dim(self) -> int:
        """The dimension of `weight` that is summed over: 1, or 0 for GPT-2's transposed Conv1D."""
        return 0 if isinstance(self.module, Conv1D) else 1


def find_linears(accessed: AccessedModel) -> list[LinearSite]:
    """Every linear map that a forward calls, in order of block and call."""
    names = {id(module): name for name, module in accessed.model.named_modules()}
    called: dict[int, list[Called]] = {}
    whole: dict[int, list[Called]] = {}
    handles = []
    for layer in accessed.layers:
        handles.append(layer.ffn.inner.register_forward_hook(_note(whole.setdefault(layer.ffn.block, []))))
        inside = {id(module) for module in layer.attention.inner.modules()}
        mixing = {id(module) for mixer in layer.mixers for module in mixer.modules()}
        for module in layer.layer.modules():
            if id(module) in mixing:
                # Neither q, k, v nor o: what a recurrence or convolution reads and writes has no kind here.
                continue
            if isinstance(module, nn.Linear | Conv1D):
                block = (layer.attention if id(module) in inside else layer.ffn).block
                handles.append(module.register_forward_hook(_note(called.setdefault(block, []))))
    try:
        run(accessed, full_batch(torch.zeros(1, 3, dtype=torch.long)))
    finally:
        for handle in handles:
            handle.remove()
    sites = []
    for block, calls in sorted(called.items()):
        if block in whole and not _is_all(accessed.blocks()[block - 1], calls[-1], whole[block]):
            continue
        for module, kind in _kinds(block, [module for module, _ in calls], accessed.d_model):
            sites.append(LinearSite(block, kind, names[id(module)], module))
    return sites


def missing_linears(accessed: AccessedModel, linears: list[LinearSite]) -> list[str]:
    """Kinds of linear maps that some block does not have singly, each with the reason."""
    reasons = []
    for kind in KINDS:
        blocks = {(layer.attention if kind.startswith("attention") else layer.ffn).block for layer in accessed.layers}
        missing = blocks - {site.block for site in linears if site.kind == kind}
        where = "" if missing == blocks else f" in {len(missing)} of {len(blocks)} blocks"
        reasons += [f"{kind}: the model has no such single linear map{where}"] if missing else []
    return reasons


def _note(called: list[Called]) -> Callable[..., None]:
    def hook(module: nn.Module, _args: Any, output: Any) -> None:
        called.append((module, (output[0] if isinstance(output, tuple) else output).detach()))

    return hook


def _is_all(sites: BlockSites, last: Called, whole: list[Called]) -> bool:
    """Whether an FFN computes what its last linear does, but for a factor: experts beside a shared one add to it."""
    if len(sites.writers) > 1 or len(whole) != 1 or last[1].numel() != whole[0][1].numel():
        return False
    shown, expected = (output.double().flatten() for _, output in (last, whole[0]))
    factor = (shown @ expected) / (shown @ shown).clamp_min(1e-300)
    return bool((factor * shown - expected).norm() <= REST_MAX * expected.norm())


def _kinds(block: int, modules: list[nn.Module], d_model: int) -> Iterator[tuple[nn.Module, str]]:
    """What each linear of a block is; nothing for one called twice (an expert) or with sizes that do not fit."""
    reads, writes = ("attention_in", "attention_out") if block % 2 else ("ffn_in", "down_proj")
    if not modules or len({id(module) for module in modules}) < len(modules):
        return
    *first, last = modules
    if not first or _sizes(last)[1] != d_model or any(_sizes(module)[0] != d_model for module in first):
        return
    for module in first:
        yield module, reads
    yield last, writes


def _sizes(module: nn.Module) -> tuple[int, int]:
    """(input, output) channels."""
    weight = cast(Tensor, module.weight)
    return (weight.shape[0], weight.shape[1]) if isinstance(module, Conv1D) else (weight.shape[1], weight.shape[0])


@contextmanager
def editing_inputs(sites: list[LinearSite], edit: Callable[[LinearSite, Tensor], Tensor]) -> Iterator[None]:
    """Let `edit` change what enters these linears, (batch, token, channel) or (tokens, channel)."""
    handles = []

    def changed(site: LinearSite) -> Callable[[nn.Module, tuple], tuple]:
        def hook(_module: nn.Module, args: tuple) -> tuple:
            return (edit(site, args[0]), *args[1:])

        return hook

    try:
        for site in sites:
            handles.append(site.module.register_forward_pre_hook(changed(site)))
        yield
    finally:
        for handle in handles:
            handle.remove()
