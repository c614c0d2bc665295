"""A KV cache of fixed size for streaming: the first tokens are kept, of the others only the most recent."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from spikesink.access.model import AccessedModel
from spikesink.errors import InputError, UnsupportedModelError


class SinkWindowLayer(DynamicLayer):
    """One layer's cache of at most `window` tokens: the first `keep`, then the latest; positions stay the true ones."""

    def __init__(self, window: int, keep: int) -> None:
        super().__init__()
        self.window, self.keep = window, keep
        self.seen = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append, then drop what no longer fits. Raises InputError for more than one token beyond the window."""
        new = key_states.shape[-2]
        self.seen += new
        if new > 1 and self.seen > self.window:
            raise InputError(
                f"Got {new} tokens at once, but the cache holds {self.window}; feed what is beyond one token at a time."
            )
        super().update(key_states, value_states)
        self.keys, self.values = self._fitting(self.keys), self._fitting(self.values)
        return self.keys, self.values

    def _fitting(self, states: Tensor | None) -> Tensor:
        assert states is not None
        if states.shape[-2] <= self.window:
            return states
        recent = self.window - self.keep
        return torch.cat([states[..., : self.keep, :], states[..., states.shape[-2] - recent :, :]], dim=-2)

    def get_seq_length(self) -> int:
        """Tokens seen, not tokens held: the next token's position."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset for the mask: everything that is held is visible."""
        length = min(self.seen + query_length, self.window)
        return length, self.seen + query_length - length

    def get_max_length(self) -> int:
        return self.window


def sink_cache(accessed: AccessedModel, window: int, keep: int) -> Cache:
    """A cache for `model(..., cache=...)` that holds `window` tokens per layer, the first `keep` of them for good.

    What `intervene.streaming_window` does by masking. Before transformers 5.24 the argument is `past_key_values`.
    Raises UnsupportedModelError for models with windows of their own, whose masks go by the place in the cache.
    """
    check_window(window, keep)
    if any(kind != "full_attention" for kind in getattr(accessed.config, "layer_types", None) or []):
        raise UnsupportedModelError(f"'{accessed.name}' has layers with windows of their own; it needs no sink cache.")
    return Cache(layers=[SinkWindowLayer(window, keep) for _ in range(accessed.n_layers)])


def check_window(window: int, keep: int) -> None:
    """Raise InputError unless 0 <= keep < window."""
    if not 0 <= keep < window:
        raise InputError(f"Got {keep} kept tokens in a window of {window}; expected 0 to {window - 1}.")
