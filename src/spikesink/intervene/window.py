"""A streaming window: every token sees the first few tokens and the latest ones."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.access.sink_cache import check_window
from spikesink.intervene.base import Context


def streaming_window(accessed: AccessedModel, window: int, keep: int, first: int = 0) -> Context:
    """Let every token see what a KV cache of `window` tokens holds: `keep` early ones and the latest, itself included.

    first: position of the first kept token; 0 as in StreamingLLM (Xiao et al. 2023), another one as a control.
    Positions stay the true ones. The same logits as streaming token by token with `access.sink_cache`.
    """
    check_window(window, keep)
    return editing(accessed, WindowEditor(window, keep, first))


class WindowEditor:
    """Masks keys that the cache no longer holds."""

    def __init__(self, window: int, keep: int, first: int) -> None:
        self.window, self.keep, self.first = window, keep, first

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        rows, keys = scores.shape[-2:]
        query = torch.arange(query_start, query_start + rows, device=scores.device)[:, None]
        key = torch.arange(key_start, key_start + keys, device=scores.device)[None]
        kept = (key >= self.first) & (key < self.first + self.keep)
        # Nothing is dropped before the cache is full.
        held = kept | (query - key < self.window - self.keep) | (query < self.window)
        return scores.masked_fill(~held, float("-inf"))
