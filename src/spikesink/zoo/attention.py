"""Attention whose heads, normaliser, virtual keys, QK-norm and gate are choices of the spec. Tables 5 to 7."""

from torch import Tensor, nn

from spikesink.zoo.backends import attention_function
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
