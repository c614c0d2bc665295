"""Smoothing and rotation folded into the weights: the model computes what it did, from inputs that round better.

Nothing is simulated: a folded model is a plain checkpoint of the same family. Whatever cannot be folded is refused, and
the logits are compared before and after.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikesink.access import AccessedModel, full_batch, run
from spikesink.access.blocks import BlockSites
from spikesink.access.comparison import difference, probe_ids, tolerances
from spikesink.access.gated_ffn import PROJECTIONS
from spikesink.access.linears import LinearSite, find_linears
from spikesink.access.norm_weights import norm_scale
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.quantise import Rotation
from spikesink.positions import placed

ALPHA = 0.5
"""SmoothQuant's share of the range that goes from inputs to weights."""
SMALLEST = 1e-5
"""Least magnitude that a scale is made of."""


class Folding:
    """Parameters changed so far, so that they come back bit for bit."""

    def __init__(self, accessed: AccessedModel) -> None:
        self.accessed = accessed
        self._before: list[tuple[Tensor, Tensor]] = []
        self._undo: list[Callable[[], None]] = []

    def set(self, parameter: Tensor, values: Tensor) -> None:
        """Called without gradient."""
        self._before.append((parameter, parameter.detach().clone()))
        parameter.copy_(values)

    def untie(self) -> nn.Linear:
        """The head with a weight of its own."""
        head, config = cast(nn.Linear, self.accessed.model.get_output_embeddings()), self.accessed.config
        if head.weight is not self.accessed.model.get_input_embeddings().weight:
            return head
        tied, told = head.weight, {id(each): each for each in (config, self.accessed.model.config)}.values()
        said = [(each, each.tie_word_embeddings) for each in told]
        head.weight = nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad)
        for each in told:
            each.tie_word_embeddings = False

        def undo() -> None:
            head.weight = tied
            for each, before in said:
                each.tie_word_embeddings = before

        self._undo.append(undo)
        return head

    def undo(self) -> None:
        with torch.no_grad():
            for parameter, before in reversed(self._before):
                parameter.copy_(before)
        for undo in self._undo:
            undo()


@contextmanager
def smoothed(accessed: AccessedModel, largest: Mapping[str, Tensor], alpha: float = ALPHA) -> Iterator[float]:
    """SmoothQuant's scales, 2023, in the weights of every linear map, down_proj included; undone after.

    largest: by module name the largest magnitude (channel,) that enters it. Gives the relative difference of the
    logits. Raises DoesNotApplyError where nothing before a linear map can take its scale.
    """
    with _folded(accessed, lambda folding: _smooth(folding, largest, alpha)) as wrong:
        yield wrong


@contextmanager
def rotated(accessed: AccessedModel) -> Iterator[float]:
    """The residual stream rotated, and values within their head, as QuaRot, 2024; undone after.

    What enters down_proj stays: a rotation behind the activation is no part of a plain checkpoint. Gives the relative
    difference of the logits. Raises DoesNotApplyError for a family that cannot be rotated.
    """
    with _folded(accessed, _rotate) as wrong:
        yield wrong


@contextmanager
def _folded(accessed: AccessedModel, fold: Callable[[Folding], None]) -> Iterator[float]:
    folding = Folding(accessed)
    batch = full_batch(probe_ids(accessed.vocab_size))
    before = run(accessed, batch)
    try:
        with torch.no_grad():
            fold(folding)
        wrong = difference(run(accessed, batch), before)
        if not wrong < tolerances(accessed.dtype).forward:
            raise DoesNotApplyError(
                f"'{accessed.name}' does not compute the same after folding: its logits differ by {wrong:.2g}"
            )
        yield wrong
    finally:
        folding.undo()


def _by_block(accessed: AccessedModel) -> Iterator[tuple[BlockSites, list[LinearSite], LinearSite]]:
    """Every block with the linear maps that read the residual and the one that writes it."""
    linears = find_linears(accessed)
    for sites in accessed.blocks():
        here = [site for site in linears if site.block == sites.block]
        where = f"block {placed(sites.block)} of '{accessed.name}'"
        if len(here) < 2:
            raise DoesNotApplyError(
                f"the linear maps of {where} are not all known: one must read the residual and one write it, called "
                "once each, as those of experts are not"
            )
        if any(site.input_dim == 0 for site in here):
            raise DoesNotApplyError(f"the linear maps of {where} are transposed (Conv1D), which is not folded into")
        yield sites, here[:-1], here[-1]


def _smooth(folding: Folding, largest: Mapping[str, Tensor], alpha: float) -> None:
    for sites, reading, writing in _by_block(folding.accessed):
        if not isinstance(sites.input_norm, nn.Module) or getattr(sites.input_norm, "weight", None) is None:
            raise DoesNotApplyError(f"Block {placed(sites.block)} has no norm with a scale at its input")
        scales = _scales(reading, largest[reading[0].name], alpha)
        _divide_norm(folding, sites, scales)
        for site in reading:
            folding.set(site.weight, site.weight * scales)
        _smooth_last(folding, sites, writing, largest[writing.name], alpha)


def _smooth_last(folding: Folding, sites: BlockSites, writing: LinearSite, entering: Tensor, alpha: float) -> None:
    """What enters o_proj takes its scale from the values, what enters down_proj from up: linear in both."""
    if sites.kind == "ffn":
        before, groups = _projection(sites.inner, "up", "gate over up"), 1
    else:
        before = _projection(sites.inner, "value", "query, key over value")
        groups = int(getattr(sites.inner, "num_key_value_groups", 1))
    scales = _value_scales(sites, writing, entering, alpha, groups)
    shown = scales if groups == 1 else _heads(scales, sites)[::groups].flatten()
    # Of a fused matrix, up or the values are the last rows.
    shown = nn.functional.pad(shown, (before.weight.shape[0] - len(shown), 0), value=1.0)
    folding.set(before.weight, before.weight / shown[:, None])
    if before.bias is not None:
        folding.set(before.bias, before.bias / shown)
    folding.set(writing.weight, writing.weight * scales)


def _scales(sites: list[LinearSite], entering: Tensor, alpha: float) -> Tensor:
    """max |X_j| ** alpha / max |W_j| ** (1 - alpha), (channel,)."""
    weight = torch.stack([site.weight.detach().abs().amax(0).float() for site in sites]).amax(0)
    return _scale(entering.to(weight), weight, alpha)


def _scale(entering: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """From the largest magnitudes of both."""
    return entering.clamp_min(SMALLEST) ** alpha / weight.clamp_min(SMALLEST) ** (1 - alpha)


def _heads(channels: Tensor, sites: BlockSites) -> Tensor:
    """Channels of all heads as (head, d_head)."""
    return channels.unflatten(0, (-1, int(cast(Any, sites.inner).head_dim)))


def _value_scales(sites: BlockSites, writing: LinearSite, entering: Tensor, alpha: float, groups: int) -> Tensor:
    """Scales of what enters the last linear map; query heads that share a value share the scale."""
    if groups == 1:
        return _scales([writing], entering, alpha)
    weight = writing.weight.detach().abs().amax(0).float()
    inputs, weights = (_heads(each, sites).unflatten(0, (-1, groups)).amax(1) for each in (entering.to(weight), weight))
    return _scale(inputs, weights, alpha).repeat_interleave(groups, 0).flatten()


def _divide_norm(folding: Folding, sites: BlockSites, scales: Tensor) -> None:
    norm = cast(nn.Module, sites.input_norm)
    scale = norm_scale(sites, folding.accessed.d_model)
    weight, bias = cast(nn.Parameter, norm.weight), getattr(norm, "bias", None)
    assert scale is not None, "a norm with a weight"
    offset = scale.gain - weight.detach().float()
    folding.set(weight, scale.gain / scales - offset)
    if bias is not None:
        folding.set(bias, bias / scales)


def _projection(inner: nn.Module, *roles: str) -> nn.Linear:
    names = [name for role in roles for name in PROJECTIONS[role]]
    module = next((getattr(inner, name) for name in names if isinstance(getattr(inner, name, None), nn.Linear)), None)
    if module is None:
        raise DoesNotApplyError(f"{type(inner).__name__} has no {' or '.join(roles)} projection that takes a scale")
    return module


def _rotate(folding: Folding) -> None:
    accessed = folding.accessed
    blocks = list(_by_block(accessed))
    for sites, _, _ in blocks:
        if accessed.post_norm or sites.output_norm is not None or sites.input_norm is None or sites.also:
            raise DoesNotApplyError(
                f"Block {placed(sites.block)} of '{accessed.name}' has norms that no rotation passes"
            )
    rotation, decoder = Rotation.of(accessed.d_model), accessed.model.get_decoder()
    head, embedding = folding.untie(), cast(nn.Embedding, accessed.model.get_input_embeddings())
    final = next((module for name in ("norm", "ln_f") if (module := getattr(decoder, name, None)) is not None), None)
    if final is None or embedding.weight.shape[1] != accessed.d_model:
        raise DoesNotApplyError(f"'{accessed.name}' has no final norm, or other embeddings, that can be rotated")
    readers: dict[int, tuple[nn.Module, list[Tensor]]] = {}
    for sites, reading, _ in blocks:
        norm = cast(nn.Module, sites.input_norm)
        readers.setdefault(id(norm), (norm, []))[1].extend(site.weight for site in reading)
    readers[id(final)] = final, [head.weight]
    for norm, weights in readers.values():
        gain = _gain_out(folding, norm, blocks[0][0])
        for weight in weights:
            folding.set(weight, rotation(weight.detach().double() * gain.double()))
    folding.set(embedding.weight, rotation(embedding.weight.detach().double()))
    for sites, _, writing in blocks:
        if sites.kind == "attention":
            _rotate_values(folding, sites, writing)
        folding.set(writing.weight, rotation(writing.weight.detach().double().T).T)
        if (bias := getattr(writing.module, "bias", None)) is not None:
            folding.set(bias, rotation(bias.detach().double()))


def _gain_out(folding: Folding, norm: nn.Module, like: BlockSites) -> Tensor:
    """The norm's scale (channel,), which it has no more afterwards."""
    scale = norm_scale(replace(like, input_norm=norm), folding.accessed.d_model)
    if scale is None or scale.norm.centred or scale.bias is not None:
        raise DoesNotApplyError(f"'{folding.accessed.name}' has a LayerNorm, whose mean no rotation keeps")
    gain, weight = scale.gain.clone(), getattr(norm, "weight", None)
    if weight is not None:
        folding.set(weight, 1.0 - (gain - weight.detach().float()))
    return gain


def _rotate_values(folding: Folding, sites: BlockSites, writing: LinearSite) -> None:
    """Values turned within their head, and back where the output projection reads them; not where they are fused."""
    value, size = getattr(sites.inner, "v_proj", None), getattr(sites.inner, "head_dim", None)
    if not isinstance(value, nn.Linear) or not isinstance(size, int) or value.bias is not None:
        return
    within = Rotation.of(size)
    turned = within(value.weight.detach().double().T.unflatten(1, (-1, size))).flatten(1).T
    folding.set(value.weight, turned)
    folding.set(writing.weight, within(writing.weight.detach().double().unflatten(1, (-1, size))).flatten(1))
