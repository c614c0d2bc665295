"""Attention whose heads, normaliser, virtual keys, QK-norm and gate are choices of the spec. Tables 5 to 7."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spikesink.errors import UnsupportedModelError
from spikesink.zoo.context import Context
from spikesink.zoo.gates import build_gate
from spikesink.zoo.normalisers import (
    KeyValueBias,
    LearnedSink,
    LearnedSinks,
    VirtualKeyValues,
    attention_options,
    in_front,
)
from spikesink.zoo.positions import RoPE, rotate
from spikesink.zoo.spec import DecoderSpec

MEASURING = "spikesink"
"""Name under which the measuring attention is registered; it computes every option."""


def attention_function(name: str, *, plain: bool) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function for this attention implementation. Raises UnsupportedModelError where it would ignore an option."""
    if name == "eager":
        return eager
    if plain or name == MEASURING:
        return ALL_ATTENTION_FUNCTIONS[name]
    if name == "sdpa":
        return sdpa
    raise UnsupportedModelError(
        f"The attention implementation '{name}' would ignore this spec's normaliser or virtual keys; expected eager or "
        "sdpa. Load with attn_implementation='sdpa'."
    )


def eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    s_aux: Tensor | None = None,
    attention_normaliser: str = "softmax",
    sigmoid_bias: float = 0.0,
    virtual_keys: int = 0,
    softcap: float | None = None,
    **_options: Any,
) -> tuple[Tensor, Tensor]:
    """Attention by the book, with weights over all keys, the virtual ones first. Eq. 6-11.

    query (batch, head, token, d_head); key and value per KV head; returns (batch, token, head, d_head) and weights.
    """
    scores = _grouped(query * scaling, key.mT)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + _additive(attention_mask, query, key.shape[2], virtual_keys)
    if attention_normaliser == "sigmoid":
        weights = torch.sigmoid(scores.float() + sigmoid_bias)
    elif s_aux is None:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        sinks = s_aux.reshape(1, -1, 1, 1).to(scores.dtype).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
    weights = functional.dropout(weights.to(value.dtype), p=dropout, training=module.training)
    return _grouped(weights, value).transpose(1, 2).contiguous(), weights


def sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    s_aux: Tensor | None = None,
    attention_normaliser: str = "softmax",
    virtual_keys: int = 0,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Fused attention: a learned sink is one more key, zero like its value, whose logit comes by the mask."""
    if attention_normaliser == "sigmoid" or softcap is not None:
        options.update(
            attention_normaliser=attention_normaliser, virtual_keys=virtual_keys, softcap=softcap, s_aux=s_aux
        )
        return eager(module, query, key, value, attention_mask, scaling, dropout, **options)[0], None
    mask = _additive(attention_mask, query, key.shape[2], virtual_keys)
    if s_aux is not None:
        key, value = functional.pad(key, (0, 0, 0, 1)), functional.pad(value, (0, 0, 0, 1))
        sinks = s_aux.reshape(1, -1, 1, 1).to(query.dtype)
        mask = mask.expand(mask.shape[0], sinks.shape[1], -1, -1)
        mask = torch.cat([mask, sinks.expand(*mask.shape[:3], 1)], dim=-1)
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended.transpose(1, 2).contiguous(), None


def _grouped(left: Tensor, right: Tensor) -> Tensor:
    """left (b, h, i, j) @ right (b, kv, j, k), each KV head shared by h / kv heads."""
    groups = left.shape[1] // right.shape[1]
    product = left.unflatten(1, (right.shape[1], groups)) @ right[:, :, None]
    return product.flatten(1, 2)


def _additive(mask: Tensor | None, query: Tensor, keys: int, virtual_keys: int) -> Tensor:
    """The mask as numbers to add, (batch or 1, 1, query, key), with virtual keys visible in front."""
    length, tokens = query.shape[2], keys - virtual_keys
    lowest = torch.finfo(query.dtype).min
    if mask is None:
        # transformers leaves the mask out where it is plain causal; one query alone sees every key.
        offset = tokens - 1 if length == 1 else 0
        mask = torch.ones(1, 1, length, tokens, dtype=torch.bool, device=query.device).tril(offset)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, lowest)
    return functional.pad(mask[..., :tokens], (virtual_keys, 0))


class Attention(nn.Module):
    """(batch, token, d_model) -> what the block writes, and the weights where the backend keeps them."""

    is_causal = True

    def __init__(self, spec: DecoderSpec, layer_idx: int) -> None:
        super().__init__()
        self.spec, self.layer_idx = spec, layer_idx
        self.head_dim = spec.d_head
        self.num_key_value_groups = spec.n_heads // spec.n_kv_heads
        self.scaling = spec.d_head**-0.5
        queries, keys = spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head
        self.theta = spec.position.theta_of(layer_idx) if isinstance(spec.position, RoPE) else 0.0
        self.q_proj = nn.Linear(spec.d_model, queries, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(spec.d_model, keys, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(spec.d_model, keys, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(queries, spec.d_model, bias=False)
        over = spec.arrangement.qk_norm_over
        self.norm_over_head = over == "head"
        self.q_norm = _qk_norm(spec, over, queries)
        self.k_norm = _qk_norm(spec, over, keys)
        self.sinks = LearnedSinks(spec.n_heads) if isinstance(spec.normaliser, LearnedSink) else None
        bias = spec.virtual_keys
        self.virtual = (
            VirtualKeyValues(bias.n, spec.n_kv_heads, spec.d_head) if isinstance(bias, KeyValueBias) else None
        )
        self.gate = build_gate(spec.gate, spec.d_model, spec.n_heads, spec.d_head)

    def forward(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        query = self._heads(self.q_proj(hidden), self.q_norm)
        key = self._heads(self.k_proj(hidden), self.k_norm)
        value = self._heads(self.v_proj(hidden), None)
        if self.theta:
            query, key = (rotate(heads, *context.rotary[self.theta]) for heads in (query, key))
        if context.cache is not None:
            key, value = context.cache.update(key, value, self.layer_idx)
        spec = self.spec
        options = attention_options(spec.normaliser, spec.n_heads, spec.max_positions, self.sinks, query)
        if spec.attention_softcap is not None:
            options["softcap"] = spec.attention_softcap
        virtual = self._virtual(context)
        if virtual is not None:
            key, value = in_front(virtual[0], key), in_front(virtual[1], value)
            options["virtual_keys"] = virtual[0].shape[2]
        attend = attention_function(context.attention, plain=not options)
        attended, weights = attend(
            self, query, key, value, context.mask, dropout=0.0, scaling=self.scaling, **options, **context.options
        )
        if self.gate is not None:
            attended = self.gate(attended, hidden, context)
        return self.o_proj(attended.flatten(2)), weights

    def _virtual(self, context: Context) -> tuple[Tensor, Tensor] | None:
        """Keys and values that belong to no token, each (1, kv_head, n, d_head)."""
        if self.virtual is not None:
            return self.virtual()
        return context.prefix[self.layer_idx] if context.prefix is not None else None

    def _heads(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        """(batch, token, head * d_head) -> (batch, head, token, d_head), normed over all heads or over each."""
        if norm is not None and not self.norm_over_head:
            projected = norm(projected)
        heads = projected.unflatten(-1, (-1, self.head_dim))
        if norm is not None and self.norm_over_head:
            heads = norm(heads)
        return heads.transpose(1, 2)


def _qk_norm(spec: DecoderSpec, over: str | None, width: int) -> nn.Module | None:
    if over is None:
        return None
    return spec.norm.build(spec.d_head if over == "head" else width)


class AttentionInPlace(nn.Module):
    """Attention where the FFN would stand; it has its own keys in the cache."""

    def __init__(self, spec: DecoderSpec, layer_idx: int) -> None:
        super().__init__()
        self.attention = Attention(spec, layer_idx)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return self.attention(hidden, context)[0]
