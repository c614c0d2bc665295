"""A small Llama written out by hand, with places where a test can put its own arithmetic."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


def same(*args):
    """Leave the last argument as it is."""
    return args[-1]


@dataclass
class Hand:
    """Forward pass of a LlamaForCausalLM from its weights. Blocks from 1; each change gets the block first."""

    model: torch.nn.Module
    residual: Callable[[int, Tensor], Tensor] = same
    write: Callable[[int, Tensor], Tensor] = same
    normed: Callable[[int, Tensor, Tensor], Tensor] = same
    """(block, norm without scale, norm with scale) -> what the block reads."""
    scores: Callable[[int, Tensor], Tensor] = same
    """Masked logits (batch, head, query, key)."""
    weights: Callable[[int, Tensor, Tensor], Tensor] = same
    """(block, masked logits, softmax) -> weights that bring values."""
    down: Callable[[int, Tensor], Tensor] = same
    """W_down."""
    keys: Callable[[int, Tensor], Tensor] = same
    """Rotated keys (batch, token, kv_head, size)."""
    values: Callable[[int, Tensor], Tensor] = same
    neurons: Callable[[int, Tensor], Tensor] = same
    """What enters W_down (batch, token, d_ffn)."""
    residuals: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self._run(ids)

    def _run(self, ids: Tensor) -> Tensor:
        inner = self.model.model
        hidden = self.residual(0, inner.embed_tokens.weight[ids])
        for index, layer in enumerate(inner.layers):
            odd, even = 2 * index + 1, 2 * index + 2
            hidden = hidden + self.write(odd, self._attention(odd, layer.self_attn, self._norm(odd, layer, hidden)))
            hidden = self.residuals[odd] = self.residual(odd, hidden)
            hidden = hidden + self.write(even, self._ffn(even, layer.mlp, self._norm(even, layer, hidden)))
            hidden = self.residuals[even] = self.residual(even, hidden)
        bare = hidden / (hidden.pow(2).mean(-1, keepdim=True) + inner.norm.variance_epsilon).sqrt()
        return bare * inner.norm.weight @ self.model.lm_head.weight.T

    def _norm(self, block: int, layer, hidden: Tensor) -> Tensor:
        norm = layer.input_layernorm if block % 2 else layer.post_attention_layernorm
        bare = hidden / (hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        return self.normed(block, bare, bare * norm.weight)

    def _attention(self, block: int, attention, entering: Tensor) -> Tensor:
        config = attention.config
        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
        batch, tokens, _ = entering.shape
        theta = config.rope_parameters["rope_theta"]
        query = rotated((entering @ attention.q_proj.weight.T).view(batch, tokens, heads, size), theta)
        key = rotated((entering @ attention.k_proj.weight.T).view(batch, tokens, groups, size), theta)
        value = (entering @ attention.v_proj.weight.T).view(batch, tokens, groups, size)
        key, value = self.keys(block, key), self.values(block, value)
        scores = torch.full((batch, heads, tokens, tokens), -math.inf)
        for head in range(heads):
            for t in range(tokens):
                for s in range(t + 1):
                    shared = head // (heads // groups)
                    scores[:, head, t, s] = (query[:, t, head] * key[:, s, shared]).sum(-1) / math.sqrt(size)
        scores = self.scores(block, scores)
        weights = self.weights(block, scores, scores.softmax(-1))
        output = torch.zeros(batch, tokens, heads, size)
        for head in range(heads):
            output[:, :, head] = weights[:, head] @ value[:, :, head // (heads // groups)]
        return output.reshape(batch, tokens, heads * size) @ attention.o_proj.weight.T

    def _ffn(self, block: int, mlp, entering: Tensor) -> Tensor:
        gate, up = entering @ mlp.gate_proj.weight.T, entering @ mlp.up_proj.weight.T
        return self.neurons(block, gate * torch.sigmoid(gate) * up) @ self.down(block, mlp.down_proj.weight).T


def rotated(vectors: Tensor, theta: float) -> Tensor:
    """Rotary embedding of (batch, token, head, size): pairs (i, i + size / 2) turned by position * theta^(-2i/size)."""
    turned = vectors.clone()
    size = vectors.shape[-1]
    for t in range(vectors.shape[1]):
        for i in range(size // 2):
            angle = t * theta ** (-2 * i / size)
            one, other = vectors[:, t, :, i], vectors[:, t, :, i + size // 2]
            turned[:, t, :, i] = one * math.cos(angle) - other * math.sin(angle)
            turned[:, t, :, i + size // 2] = other * math.cos(angle) + one * math.sin(angle)
    return turned
