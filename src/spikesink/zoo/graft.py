"""Another norm, arrangement, gate or normaliser in a trained decoder, begun where its function moves little.

A norm that comes is fitted to what stood in its place (least squares on ordinary tokens, in the order in which the new
decoder runs), a norm that goes leaves a fixed scale in the matrices that read its output, a gate begins at one half
before a W_O that is doubled.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from spikesink.errors import InputError
from spikesink.zoo.arrangements import PostNorm
from spikesink.zoo.attention import Attention
from spikesink.zoo.context import Context
from spikesink.zoo.decoder import SpikesinkDecoderForCausalLM, build
from spikesink.zoo.gates import NoGate
from spikesink.zoo.normalisers import LearnedSink, NoVirtualKeys, Softmax
from spikesink.zoo.norms import DynamicTanh
from spikesink.zoo.positions import rotate
from spikesink.zoo.spec import DecoderSpec, diff

CHOICES = ("arrangement", "norm", "gate", "normaliser", "virtual_keys")
"""What a graft can replace; the rest of a spec is the shape of the trained weights."""
ORDINARY_MAX = 10.0
"""A token whose vector is longer than so many medians is a spike: nothing is fitted to it."""
SINK_SHARE = 0.01
"""Attention that a learned sink takes at first. At a large negative number none, but its gradient would vanish too."""
ALPHAS = tuple(0.01 * 1.15**step for step in range(45))
"""Slopes of DynamicTanh that are tried, times the typical size of its input: 0.01 to 4.7."""


def check_graft(base: DecoderSpec, target: DecoderSpec) -> dict[str, tuple[Any, Any]]:
    """What is replaced, by dotted path. Raises InputError where nothing is, or what a graft cannot replace."""
    changed = diff(base, target)
    if not changed:
        raise InputError("The model has all of these choices already; there is nothing to graft.")
    beyond = [path for path in changed if path.split(".")[0] not in CHOICES]
    if beyond:
        raise InputError(f"A graft cannot replace {beyond[0]}; expected one of {', '.join(CHOICES)}.")
    if isinstance(base.arrangement, PostNorm):
        raise InputError("A model whose residual is normed (arrangement: post) has no scale to begin a graft with.")
    removed = {"gate": NoGate, "normaliser": Softmax, "virtual_keys": NoVirtualKeys}
    for name, plain in removed.items():
        if name in {path.split(".")[0] for path in changed} and not isinstance(getattr(base, name), plain):
            kind = getattr(base, name).kind
            raise InputError(f"A graft adds a {name}; this model has one already ({kind}), which it cannot replace.")
    if target.norm.kind == "none" and target.tied_embeddings:
        raise InputError(
            "norm: none leaves a scale in the head, which this model ties to its embeddings; not possible."
        )
    return changed


@torch.no_grad()
def graft(decoder: SpikesinkDecoderForCausalLM, target: DecoderSpec, ids: Tensor) -> SpikesinkDecoderForCausalLM:
    """The decoder with the target's choices, fitted on ids (sequence, token); the decoder stays as it was.

    Raises InputError where `check_graft` does.
    """
    base = decoder.config.decoder_spec
    check_graft(base, target)
    config = decoder.config
    new = build(
        target, bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).to(device=decoder.device, dtype=decoder.dtype)  # type: ignore[arg-type]
    state, ours = decoder.state_dict(), new.state_dict()
    same = {key: value for key, value in state.items() if key in ours and ours[key].shape == value.shape}
    new.load_state_dict(same, strict=False)
    seen = _watch(decoder, ids)
    if isinstance(target.normaliser, LearnedSink):
        for old, layer, context in zip(_layers(decoder), _layers(new), seen.attention, strict=True):
            layer.self_attn.sinks.logits.copy_(_sink_logits(old.self_attn, *context))
    if target.gate != base.gate:
        for layer in _layers(new):
            for parameter in layer.self_attn.gate.parameters():
                parameter.zero_()
            layer.self_attn.o_proj.weight.mul_(2.0)
    _place_in_order(new, list(_sites(decoder, new, seen)), ids)
    return new.eval()


@dataclass
class _Seen:
    """What went into every module by its id, (sequence, token, channel), and into every attention."""

    inputs: dict[int, Tensor] = field(default_factory=dict)
    attention: list[tuple[Tensor, Context]] = field(default_factory=list)


@dataclass(frozen=True)
class _Site:
    """A place where a norm may stand: what stood there with its input, what stands there now, who reads its output."""

    old: nn.Module
    new: nn.Module
    entering: Tensor
    """What entered the old one, (token, channel)."""
    readers: tuple[nn.Linear, ...] = ()
    """Matrices whose columns take the scale of a norm that goes."""
    writer: nn.Linear | None = None
    """Matrix whose rows take it."""
    wanted: Tensor | None = None
    """What shall come out where it is not what the old one gave, (token, channel)."""


def _watch(decoder: SpikesinkDecoderForCausalLM, ids: Tensor) -> _Seen:
    seen = _Seen()
    handles = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.inputs[id(module)] = inputs[0]

    def note_projected(module: nn.Module, _: Any, output: Tensor) -> None:
        seen.inputs[id(module)] = output

    def note_attention(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.attention.append((inputs[0], inputs[1]))

    for layer in _layers(decoder):
        for norm in (layer.input_layernorm, layer.post_attention_norm, layer.ffn_layernorm, layer.post_ffn_norm):
            handles.append(norm.register_forward_pre_hook(note))
        handles.append(layer.self_attn.register_forward_pre_hook(note_attention))
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            handles.append(projection.register_forward_hook(note_projected))
    handles.append(decoder.model.norm.register_forward_pre_hook(note))
    try:
        decoder.eval()(input_ids=ids.to(decoder.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _sites(old: SpikesinkDecoderForCausalLM, new: SpikesinkDecoderForCausalLM, seen: _Seen) -> Iterator[_Site]:
    """Every place of every layer, and the norm before the head."""
    layers = list(zip(_layers(old), _layers(new), strict=True))
    post_norm = isinstance(new.config.decoder_spec.arrangement, PostNorm)
    # What the residual stream is after a block is what enters the next norm.
    after = [site for layer, _ in layers for site in (layer.input_layernorm, layer.ffn_layernorm)][1:]
    for index, (was, now) in enumerate(layers):
        attention = now.self_attn
        yield _Site(
            was.input_layernorm,
            now.input_layernorm,
            _rows(seen.inputs[id(was.input_layernorm)]),
            readers=(attention.q_proj, attention.k_proj, attention.v_proj),
        )
        yield from _qk_sites(was.self_attn, attention, seen)
        feeds = [
            module for module in (getattr(now.mlp, "gate_proj", None), getattr(now.mlp, "up_proj", None)) if module
        ]
        yield _Site(
            was.ffn_layernorm,
            now.ffn_layernorm,
            _rows(seen.inputs[id(was.ffn_layernorm)]),
            readers=tuple(feeds or [now.mlp.down_proj]),
        )
        ends = (
            (was.post_attention_norm, now.post_attention_norm, attention.o_proj, 2 * index),
            (was.post_ffn_norm, now.post_ffn_norm, now.mlp.down_proj, 2 * index + 1),
        )
        for norm, fresh, writer, block in ends:
            if post_norm:
                final = block == len(after)
                following = old.model.norm if final else after[block]
                residual = seen.inputs[id(following)]
                wanted = following(residual) if final else residual
                yield _Site(norm, fresh, _rows(residual), wanted=_rows(wanted))
            else:
                yield _Site(norm, fresh, _rows(seen.inputs[id(norm)]), writer=writer)
    if not post_norm:
        head = (cast(nn.Linear, new.lm_head),)
        yield _Site(old.model.norm, new.model.norm, _rows(seen.inputs[id(old.model.norm)]), readers=head)


def _qk_sites(was: Attention, now: Attention, seen: _Seen) -> Iterator[_Site]:
    for name in ("q", "k"):
        projected = _rows(seen.inputs[id(getattr(was, f"{name}_proj"))])
        old, new = (getattr(attention, f"{name}_norm") for attention in (was, now))
        per_head = now.norm_over_head if new is not None else was.norm_over_head
        if per_head:
            projected = projected.unflatten(-1, (-1, now.head_dim)).flatten(0, 1)
        yield _Site(old or nn.Identity(), new or nn.Identity(), projected, writer=getattr(now, f"{name}_proj"))


def _layers(decoder: SpikesinkDecoderForCausalLM) -> list[Any]:
    """`DecoderLayer`s, whose FFN may be of any kind."""
    return list(decoder.model.layers)


def _rows(hidden: Tensor) -> Tensor:
    return hidden.flatten(0, -2)


def _place_in_order(new: SpikesinkDecoderForCausalLM, sites: list[_Site], ids: Tensor) -> None:
    """Let every new module do what the old one did, as nearly as it can on ordinary tokens.

    Each is fitted when the new decoder reaches it. Where nothing bounds what blocks write, errors grow over the layers:
    there it is fitted to what enters it in the new decoder, elsewhere to what entered its place in the trained one.
    """
    spec = new.config.decoder_spec
    scale_free = spec.norm.kind in ("rmsnorm", "layernorm")
    bounded = scale_free and spec.arrangement.output_norm and not isinstance(spec.arrangement, PostNorm)
    handles = []
    for site in sites:
        gone = isinstance(site.new, nn.Identity)
        if gone and isinstance(site.old, nn.Identity):
            continue
        if not gone and site.wanted is None and _alike(site.old, site.new):
            site.new.load_state_dict(site.old.state_dict())
        elif gone and site.writer is not None:
            wanted, ordinary = _through(site.old, site.entering), _ordinary(site.entering)
            scale, _, _ = _regressed(site.entering[ordinary].double(), wanted[ordinary].double(), shift=False)
            _leave_scale(site, scale)
        else:
            handles.append(site.new.register_forward_pre_hook(partial(_place, site, ids.shape, bounded)))
    try:
        if handles:
            new.eval()(input_ids=ids.to(new.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()


def _place(site: _Site, tokens: torch.Size, bounded: bool, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs[0].shape[:2] != tokens:  # virtual tokens, which go through attention's norms before the sequence does
        return
    wanted = _through(site.old, site.entering) if site.wanted is None else site.wanted
    ordinary = _ordinary(site.entering)
    entering = site.entering if bounded else _rows(inputs[0])
    entering, wanted = entering[ordinary].double(), wanted[ordinary].double()
    if isinstance(module, nn.Identity):
        _leave_scale(site, _regressed(entering, wanted, shift=False)[0])
    else:
        _fit(module, entering, wanted)


def _ordinary(entering: Tensor) -> Tensor:
    """Which rows (token, channel) of the trained decoder are no spikes."""
    size = entering.float().norm(dim=-1)
    return size <= ORDINARY_MAX * size.median()


def _alike(one: nn.Module, other: nn.Module) -> bool:
    shapes = [{name: tensor.shape for name, tensor in module.state_dict().items()} for module in (one, other)]
    return type(one) is type(other) and shapes[0] == shapes[1]


def _through(norm: nn.Module, entering: Tensor) -> Tensor:
    """(token, channel) through a norm that may span fewer or more channels than a row here."""
    weight = getattr(norm, "weight", None)
    if weight is None or weight.shape[0] == entering.shape[-1]:
        return norm(entering)
    return norm(entering.reshape(-1, weight.shape[0])).reshape(entering.shape)


def _fit(norm: nn.Module, entering: Tensor, wanted: Tensor) -> None:
    """Set a norm's parameters by least squares; entering, wanted (token, channel)."""
    bias = getattr(norm, "bias", None)
    if isinstance(norm, DynamicTanh):
        typical = entering.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        tried = [(alpha / typical, torch.tanh(alpha / typical * entering)) for alpha in ALPHAS]
        fits = [(alpha, *_regressed(features, wanted, shift=True)) for alpha, features in tried]
        alpha, scale, shift, _ = min(fits, key=lambda fit: float(fit[3]))
        norm.alpha.fill_(float(alpha))
    else:
        shape = entering.shape[-1:]
        eps = float(norm.eps or 0.0)  # type: ignore[arg-type]
        if isinstance(norm, nn.LayerNorm):
            features = functional.layer_norm(entering, shape, eps=eps)
        else:
            features = functional.rms_norm(entering, shape, eps=eps)
        scale, shift, _ = _regressed(features, wanted, shift=bias is not None)
    norm.weight.copy_(scale)  # type: ignore[operator]
    if bias is not None:
        bias.copy_(shift)  # type: ignore[operator]


def _regressed(features: Tensor, wanted: Tensor, *, shift: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Per channel the scale and shift of features (token, channel) that come nearest, and the squares that remain."""
    middle = features.mean(0) if shift else torch.zeros_like(features[0])
    level = wanted.mean(0) if shift else torch.zeros_like(wanted[0])
    centred = features - middle
    scale = (centred * (wanted - level)).sum(0) / centred.square().sum(0).clamp_min(1e-30)
    offset = level - scale * middle
    return scale, offset, (scale * features + offset - wanted).square().sum()


def _leave_scale(site: _Site, scale: Tensor) -> None:
    for reader in site.readers:
        reader.weight.mul_(scale.to(reader.weight.dtype))
    if site.writer is not None:
        rows = scale.repeat(site.writer.out_features // len(scale)).to(site.writer.weight.dtype)
        site.writer.weight.mul_(rows[:, None])
        if site.writer.bias is not None:
            site.writer.bias.mul_(rows)


def _sink_logits(attention: Attention, hidden: Tensor, context: Context) -> Tensor:
    """Logits (head,) at which the median query gives SINK_SHARE of its attention away."""
    query = attention._heads(attention.q_proj(hidden), attention.q_norm)
    key = attention._heads(attention.k_proj(hidden), attention.k_norm)
    if attention.theta:
        query, key = (rotate(heads, *context.rotary[attention.theta]) for heads in (query, key))
    key = key.repeat_interleave(attention.num_key_value_groups, dim=1)
    scores = (query @ key.mT * attention.scaling).float()
    unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    partition = scores.masked_fill(unseen, float("-inf")).logsumexp(-1)
    share = torch.tensor(SINK_SHARE)
    return partition.transpose(0, 1).flatten(1).median(1).values + torch.logit(share).to(partition.device)
