"""FSDP2: sharding a zoo decoder, refusing to start where nothing got sharded, and how much memory a plan needs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from spikesink.errors import InputError
from spikesink.train.recipe import Recipe
from spikesink.zoo import AttentionFFN, Linear, build

GIB = 2**30
STATE_BYTES = 16
"""A parameter: fp32 weight, gradient and both Adam moments."""


def shard(model: nn.Module, **options: Any) -> nn.Module:
    """Shard every layer by itself and the rest with the root, in place; `options` go to torch's `fully_shard`.

    The same plan as the Trainer's, for a plain loop.
    """
    for layer in model.model.layers:  # type: ignore[union-attr]
        fully_shard(layer, **options)  # type: ignore[arg-type]
    return fully_shard(model, **options)  # type: ignore[return-value]


def unsharded(model: nn.Module) -> list[str]:
    """Names of the parameters that are no DTensor."""
    return [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]


class check_sharded(TrainerCallback):  # noqa: N801 (used like a function)
    """Stops a run that asked for FSDP and did not get it: accelerate falls back to DDP in silence on a CPU."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        plain = unsharded(model) if model is not None else []
        if plain:
            raise not_sharded(f"{len(plain)} parameters were not sharded (first: {plain[0]})")


def not_sharded(what: str) -> InputError:
    """The refusal to train unsharded what was asked to be sharded."""
    return InputError(
        f"training.fsdp is true, but {what}. FSDP needs GPUs and several processes (torchrun or accelerate launch); "
        "else use --set training.fsdp=false."
    )


@dataclass(frozen=True)
class Plan:
    """Memory of one GPU, in GiB, under FSDP2 over `gpus`."""

    gpus: int
    states: float
    """fp32 weights, gradients and both Adam moments, sharded: STATE_BYTES a parameter / gpus."""
    gathered: float
    """Two layers and the root's own parameters unsharded at once, in the compute precision, with their gradients."""
    activations: float
    """Of one micro-batch: see `plan`."""

    @property
    def total(self) -> float:
        return self.states + self.gathered + self.activations


def meta_model(recipe: Recipe) -> nn.Module:
    """The recipe's model without memory for its weights."""
    with torch.device("meta"):
        return build(recipe.model)


def count_parameters(recipe: Recipe) -> tuple[int, int]:
    """Of the whole model and of one layer, without memory; layers are alike, so that only one is built."""
    one = recipe.model_copy(update={"model": recipe.model.model_copy(update={"n_layers": 1})})
    model: Any = meta_model(one)
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    return total + (recipe.model.n_layers - 1) * layer, layer


def plan(recipe: Recipe, gpus: int) -> Plan:
    """Estimate the memory per GPU from exact parameter counts; activations are those that must be alive at the peak.

    With activation checkpointing: the inputs of every layer, one layer's intermediates, and logits three times (bf16,
    and fp32 with their gradient). Without: every layer's intermediates.
    """
    total, layer = count_parameters(recipe)
    spec, training = recipe.model, recipe.training
    width = 2 if recipe.precision == "bf16" else 4
    share = max(1, training.batch_size // gpus)
    tokens = min(training.micro_batch or share, share) * recipe.data.seq_len
    d_ffn = spec.d_model if isinstance(spec.ffn, Linear | AttentionFFN) else spec.ffn.width(spec.d_model)
    heads = spec.d_head * (spec.n_heads + 2 * spec.n_kv_heads)
    # Norm outputs, queries, keys and values (before and after rotation), attention output, gate, up and product.
    inside = tokens * width * (4 * spec.d_model + 2 * heads + spec.n_heads * spec.d_head + 3 * d_ffn)
    kept = spec.n_layers * tokens * width * spec.d_model
    activations = kept + inside * (1 if training.activation_checkpointing else spec.n_layers)
    logits = tokens * spec.vocab_size * (width + 4 + 4)
    root = total - spec.n_layers * layer
    return Plan(
        gpus=gpus,
        states=STATE_BYTES * total / gpus / GIB,
        gathered=2 * width * (2 * layer + root) / GIB,
        activations=(activations + logits) / GIB,
    )
