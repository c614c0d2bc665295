"""Where norms stand around a block. Table 5."""

from typing import Annotated, ClassVar, Literal

from spikesink.zoo.choice import BY_NAME, KIND, Choice

Over = Literal["head", "all"]


class PreNorm(Choice):
    """H + F(Norm(H)), as in Llama. Eq. 4."""

    kind: Literal["pre"] = "pre"
    input_norm: ClassVar[bool] = True
    output_norm: ClassVar[bool] = False
    qk_norm_over: ClassVar[Over | None] = None


class PostNorm(Choice):
    """Norm(H + F(H)), the first Transformer's: the residual itself is normed, and no norm stands before the head."""

    kind: Literal["post"] = "post"
    input_norm: ClassVar[bool] = False
    output_norm: ClassVar[bool] = True
    qk_norm_over: ClassVar[Over | None] = None


class Sandwich(Choice):
    """H + Norm(F(Norm(H))): no block can write more than the norm lets through."""

    kind: Literal["sandwich"] = "sandwich"
    qk_norm_over: Over | None = None
    """Norm of queries and keys as well, as in Gemma 3 (over each head)."""
    input_norm: ClassVar[bool] = True
    output_norm: ClassVar[bool] = True


class SandwichQK(Choice):
    """H + Norm(F(H)) with normed queries and keys: the arrangement of OLMo 2 (norm over all heads together)."""

    kind: Literal["sandwich_qk"] = "sandwich_qk"
    qk_norm_over: Over = "all"
    input_norm: ClassVar[bool] = False
    output_norm: ClassVar[bool] = True


class PreNormQK(Choice):
    """H + F(Norm(H)) with normed queries and keys, as in Qwen 3 (norm over each head)."""

    kind: Literal["pre_qk"] = "pre_qk"
    qk_norm_over: Over = "head"
    input_norm: ClassVar[bool] = True
    output_norm: ClassVar[bool] = False


class NoInputNorm(Choice):
    """H + F(H): pre-norm simply taken away; only the norm before the head stays."""

    kind: Literal["no_input"] = "no_input"
    input_norm: ClassVar[bool] = False
    output_norm: ClassVar[bool] = False
    qk_norm_over: ClassVar[Over | None] = None


Arrangement = Annotated[PreNorm | PostNorm | Sandwich | SandwichQK | PreNormQK | NoInputNorm, KIND, BY_NAME]
