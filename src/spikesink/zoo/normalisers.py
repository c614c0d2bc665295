"""How attention scores become weights, and virtual keys, which belong to no token."""

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from spikesink.zoo.choice import BY_NAME, KIND, Choice, Size


class Softmax(Choice):
    """exp(s) / sum exp(s): the weights of a head always sum to 1."""

    kind: Literal["softmax"] = "softmax"


class OffByOne(Choice):
    """exp(s) / (1 + sum exp(s)): a learned sink fixed at 0, so that a head can attend to nothing. Miller 2023."""

    kind: Literal["off_by_one"] = "off_by_one"


class LearnedSink(Choice):
    """exp(s) / (exp(b) + sum exp(s)) with one learned b a head, as in gpt-oss (OpenAI 2025)."""

    kind: Literal["learned_sink"] = "learned_sink"


class Sigmoid(Choice):
    """sigmoid(s + bias): no competition between keys. Ramapuram et al. 2024 (arXiv 2409.04431).

    Without a bias, -log(max_positions): rows then sum to about 1 at first.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float | None = None


Normaliser = Annotated[Softmax | OffByOne | LearnedSink | Sigmoid, KIND, BY_NAME]


class NoVirtualKeys(Choice):
    """Keys of tokens only."""

    kind: Literal["none"] = "none"


class KeyValueBias(Choice):
    """`n` learned keys and values a KV head, in front of the tokens' and without position.

    n = 1 is the attention bias of Sun et al. 2024 (arXiv 2402.17762, eq. 3); more is a learned prefix of every layer
    (Li & Liang 2021, arXiv 2101.00190).
    """

    kind: Literal["key_value_bias"] = "key_value_bias"
    n: Size = 1


class Registers(Choice):
    """`n` learned vectors in front of every sequence that pass through all layers like tokens and are then dropped.

    Darcet et al. 2024 (arXiv 2309.16588). They see no token, so their keys and values are the same for every text.
    """

    kind: Literal["registers"] = "registers"
    n: Size = 1


VirtualKeys = Annotated[NoVirtualKeys | KeyValueBias | Registers, KIND, BY_NAME]


class LearnedSinks(nn.Module):
    """One learned logit a head, (n_heads,)."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_heads))


class VirtualKeyValues(nn.Module):
    """key and value of shape (kv_head, n, d_head)."""

    def __init__(self, n: int, n_kv_heads: int, d_head: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(n_kv_heads, n, d_head))
        self.value = nn.Parameter(torch.empty(n_kv_heads, n, d_head))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Key and value of shape (1, kv_head, n, d_head)."""
        return self.key[None], self.value[None]


class RegisterVectors(nn.Module):
    """The registers' embeddings, weight (n, d_model)."""

    def __init__(self, n: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, d_model))

    def forward(self) -> Tensor:
        return self.weight[None]


def in_front(virtual: Tensor, of_tokens: Tensor) -> Tensor:
    """virtual (1, kv_head, n, d_head) before (batch, kv_head, token, d_head), for every sequence of the batch."""
    return torch.cat([virtual.to(of_tokens.dtype).expand(of_tokens.shape[0], -1, -1, -1), of_tokens], dim=2)


def sigmoid_bias(spec: Sigmoid, max_positions: int) -> float:
    """The bias added to scores: as the spec says, else -log(positions)."""
    return -math.log(max_positions) if spec.bias is None else spec.bias


def attention_options(
    spec: Choice, n_heads: int, max_positions: int, sinks: LearnedSinks | None, like: Tensor
) -> dict[str, Any]:
    """Keyword arguments of the attention function; none for softmax, so that every backend can compute it."""
    if isinstance(spec, Sigmoid):
        return {"attention_normaliser": "sigmoid", "sigmoid_bias": sigmoid_bias(spec, max_positions)}
    if isinstance(spec, OffByOne):
        return {"s_aux": like.new_zeros(n_heads)}
    return {} if sinks is None else {"s_aux": sinks.logits}
