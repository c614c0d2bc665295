"""A prefix: the model's own spike tokens before every sequence, their keys and values computed once and never rounded.

As PrefixQuant, 2024: what spikes then is the prefix, and the text's own tokens no longer stretch any scale.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from spikesink.access import AccessedModel, Batch, editing
from spikesink.access.capture import without_gradient
from spikesink.errors import DoesNotApplyError, InputError, short
from spikesink.intervene.inputs import require_positions

IDS = "ids"
"""Name of the prefix's token ids among its arrays; beside them `keys.LAYER` and `values.LAYER`."""


def prefix_states(accessed: AccessedModel, ids: Sequence[int]) -> dict[str, Tensor]:
    """Keys and values (head, token, d_head) of every layer for these ids at the first positions, and the ids (token,).

    Raises DoesNotApplyError where a cache does not keep first tokens: windows of their own, recurrent layers.
    """
    require_kept(accessed)
    with without_gradient(accessed.model):
        output = accessed.model(input_ids=torch.tensor([list(ids)], device=accessed.device), use_cache=True)
    states = {IDS: torch.tensor(list(ids))}
    # Its name before transformers 5.24 is past_key_values.
    for layer, kept in enumerate((output.get("cache") or output.past_key_values).layers):
        states[f"keys.{layer}"] = kept.keys[0].cpu().contiguous()
        states[f"values.{layer}"] = kept.values[0].cpu().contiguous()
    return states


def require_kept(accessed: AccessedModel) -> None:
    """Raise DoesNotApplyError where a cache does not keep first tokens for good."""
    kinds = getattr(accessed.config, "layer_types", None) or []
    window = getattr(accessed.config, "sliding_window", None)
    if accessed.hybrid or any(kind != "full_attention" for kind in kinds) or (window and not kinds):
        raise DoesNotApplyError(f"'{accessed.name}' has layers that do not keep the first tokens")


def load_prefix(
    source: Path | str | Mapping[str, Tensor], model: PreTrainedModel, input_ids: Tensor
) -> tuple[DynamicCache, Tensor]:
    """A fresh cache that holds a prefix for each row of input_ids (batch, token), and the ids with the prefix in front.

    source: a file of `spikesink export RUN --for prefix`, or what `prefix_states` returns. A first id that the prefix
    starts with (BOS) is not doubled. Both go to the model: `generate(ids, past_key_values=cache)`. Raises InputError.
    """
    if isinstance(source, Path | str):
        source = _read(source)
    ids = source[IDS].to(input_ids)
    count = sum(name.startswith("keys.") for name in source)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if input_ids.ndim != 2 or count != layers:
        raise InputError(
            f"Got ids of shape {tuple(input_ids.shape)} and a prefix of {count} layers for a model of {layers}; "
            "expected (batch, token), and the model's own prefix."
        )
    cache = DynamicCache(config=model.config)
    rows = len(input_ids)
    for layer in range(count):
        keys, values = (
            source[f"{name}.{layer}"].to(model.device, model.dtype).expand(rows, -1, -1, -1).clone()
            for name in ("keys", "values")
        )
        cache.update(keys, values, layer)
    return cache, _behind(input_ids, ids, shares_first(input_ids, ids))


def _read(file: Path | str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        states = load_file(file)
        states[IDS]
    # safetensors has an exception of its own.
    except Exception as error:
        raise InputError(
            f"'{file}' is no prefix ({short(error)}); expected a file of spikesink export RUN --for prefix --out FILE."
        ) from error
    return states


def shares_first(input_ids: Tensor, prefix: Sequence[int] | Tensor) -> bool:
    """Whether every row of input_ids (sequence, token) starts with the prefix's first id (BOS), which then is there
    once."""
    return bool((input_ids[:, 0] == int(prefix[0])).all())


def _behind(input_ids: Tensor, prefix: Tensor, shared: bool) -> Tensor:
    """input_ids (batch, token) with the prefix (token,) in front, of which they have the first already if shared."""
    return torch.cat([prefix.expand(len(input_ids), -1), input_ids[:, 1:] if shared else input_ids], dim=1)


class _Prefixed:
    """Puts the prefix before every sequence; neither it nor the text's first token is a target of the loss."""

    def __init__(self, accessed: AccessedModel, ids: Sequence[int], text: Tensor | None) -> None:
        self.accessed, self.ids = accessed, torch.tensor(list(ids))
        self.shared = None if text is None else shares_first(text, ids)

    def edit_batch(self, batch: Batch) -> Batch:
        shared = shares_first(batch.ids, self.ids) if self.shared is None else self.shared
        ids = _behind(batch.ids, self.ids.to(batch.ids), shared)
        require_positions(self.accessed, ids.shape[1])
        scored = torch.ones_like(batch.valid) if batch.scored is None else batch.scored.clone()
        # What predicted the first token is the prefix, and nothing did before.
        scored[:, 0] = False
        scored = torch.nn.functional.pad(scored, (ids.shape[1] - scored.shape[1], 0))
        return replace(batch, ids=ids, valid=torch.ones_like(scored), scored=scored)


@contextmanager
def prefixed(accessed: AccessedModel, ids: Sequence[int], text: Tensor | None = None) -> Iterator[None]:
    """Every sequence of the run has these ids in front; the loss is over the tokens that it was over without.

    text: ids (sequence, token) of the whole run, all of which begin with BOS, so that it is not doubled, or not all, so
    that it is; without it each batch decides by itself. Raises DoesNotApplyError where a cache does not keep first
    tokens, and when run where the model has no positions for so many.

    To keep the prefix in high precision, as a cache does, spare its tokens: `spared_prefix`.
    """
    require_kept(accessed)
    with editing(accessed, _Prefixed(accessed, ids, text)):
        yield


def spared_prefix(shape: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Marks of a prefix before sequences of this shape (sequence, token): (sequence, prefix + token) bool."""
    marked = torch.zeros(shape[0], len(ids) + shape[1], dtype=torch.bool)
    marked[:, : len(ids)] = True
    return marked


def arrays_of(states: Mapping[str, Tensor]) -> dict[str, Any]:
    """The states as a record keeps them, by `prefix.NAME`; bfloat16 as float32, which numpy has."""
    return {
        f"prefix.{name}": (state.float() if state.is_floating_point() else state).numpy()
        for name, state in states.items()
    }
