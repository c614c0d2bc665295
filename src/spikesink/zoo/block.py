"""One decoder layer: an attention block and a feed-forward block, with norms where the arrangement puts them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from spikesink.zoo.arrangements import PostNorm
from spikesink.zoo.attention import Attention
from spikesink.zoo.context import Context, RegisterCache
from spikesink.zoo.ffn import AttentionFFN
from spikesink.zoo.spec import DecoderSpec


class AttentionInPlace(nn.Module):
    """Attention where the FFN would stand; it has its own keys in the cache."""

    def __init__(self, spec: DecoderSpec, layer_idx: int) -> None:
        super().__init__()
        self.attention = Attention(spec, layer_idx)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return self.attention(hidden, context)[0]


class DecoderLayer(GradientCheckpointingLayer):
    """Two residual blocks; a norm that the arrangement leaves out is an identity. (batch, token, d_model) -> same."""

    def __init__(self, spec: DecoderSpec, layer_idx: int) -> None:
        super().__init__()
        where = spec.arrangement
        self.post_norm = isinstance(where, PostNorm)

        def norm(present: bool) -> nn.Module:
            return spec.norm.build(spec.d_model) if present else nn.Identity()

        self.input_layernorm = norm(where.input_norm)
        self.self_attn = Attention(spec, layer_idx)
        self.post_attention_norm = norm(where.output_norm)
        self.ffn_layernorm = norm(where.input_norm)
        if isinstance(spec.ffn, AttentionFFN):
            self.mlp: nn.Module = AttentionInPlace(spec, spec.n_layers + layer_idx)
        else:
            self.mlp = spec.ffn.build(spec.d_model)
        self.post_ffn_norm = norm(where.output_norm)

    def forward(
        self, hidden_states: Tensor, context: Context, registers: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """With registers (1, register, d_model), also what this layer makes of them."""
        if registers is None or context.registers is None:
            return self._blocks(hidden_states, context, _call)
        prefix = RegisterCache()
        registers = self._blocks(registers, replace(context.registers, cache=prefix), _call_unwatched)
        return self._blocks(hidden_states, replace(context, prefix=prefix), _call), registers

    def _blocks(self, hidden: Tensor, context: Context, call: Callable[..., Any]) -> Tensor:
        write, _ = call(self.self_attn, call(self.input_layernorm, hidden), context)
        hidden = self._added(hidden, write, self.post_attention_norm, call)
        write = call(self.mlp, call(self.ffn_layernorm, hidden), context)
        return self._added(hidden, write, self.post_ffn_norm, call)

    def _added(self, hidden: Tensor, write: Tensor, norm: nn.Module, call: Callable[..., Any]) -> Tensor:
        return call(norm, hidden + write) if self.post_norm else hidden + call(norm, write)


def _call(module: nn.Module, *inputs: Any) -> Any:
    return module(*inputs)


def _call_unwatched(module: nn.Module, *inputs: Any) -> Any:
    """Past the module's hooks: who watches the residual stream of the tokens must not see registers in it."""
    return module.forward(*inputs)
