"""Layers that leave out tokens: those tokens' residual is set afterwards, and others attend to ready-made keys.

Only queries are left out. Keys and values keep their places, so every other token attends to exactly what it would
have attended to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from spikesink.access.attention import Call
from spikesink.access.masks import MaskPlan
from spikesink.access.protocol import Skipped, listeners
from spikesink.errors import UnsupportedModelError


def find_skipped(editors: Sequence[object], block: int) -> Skipped | None:
    """What the editors leave out in the layer of this attention block; the first that leaves out anything decides."""
    for skipped in listeners(editors, "skipped"):
        found = skipped(block)
        if found is not None:
            return found
    return None


def picked(hidden: Tensor, kwargs: dict[str, Any], skipped: Skipped) -> tuple[Tensor, dict[str, Any]]:
    """The layer's input with only the kept tokens, and their rotary embeddings."""
    rotary = kwargs.get("position_embeddings")
    if rotary is not None:
        kwargs = {**kwargs, "position_embeddings": tuple(_gathered(part, skipped.kept) for part in rotary)}
    return _gathered(hidden, skipped.kept), kwargs


def put_back(before: Tensor, computed: Tensor, skipped: Skipped) -> Tensor:
    """The residual of all tokens (batch, token, channel): computed where kept, as it was elsewhere."""
    return before.scatter(1, _index(skipped.kept, computed), computed)


def restored(call: Call, skipped: Skipped) -> Call:
    """The attention call with all keys in their places again. Raises UnsupportedModelError."""
    if call.virtual_keys or call.position_bias is not None:
        raise UnsupportedModelError("Tokens cannot be skipped in a model with virtual keys or position biases.")
    plan = call.plan
    return replace(
        call,
        key=_all_tokens(call.key, skipped.key, skipped.kept),
        value=_all_tokens(call.value, skipped.value, skipped.kept),
        plan=PickedPlan(
            batch_size=plan.batch_size,
            q_length=skipped.kept.shape[1],
            kv_length=plan.kv_length,
            arguments=plan.arguments,
            plain_causal=False,
            device=plan.device,
            kept=skipped.kept,
            whole=plan,
        ),
    )


@dataclass
class PickedPlan(MaskPlan):
    """The mask of chosen queries (batch, query), which may be others in every row of the batch."""

    kept: Tensor = field(kw_only=True)
    whole: MaskPlan = field(kw_only=True)

    def key_range(self, start: int, stop: int) -> tuple[int, int]:
        return 0, self.kv_length

    def rows(self, start: int, stop: int, low: int, high: int) -> Tensor:
        queries = self.kept[:, start:stop]
        first, last = int(queries.min()), int(queries.max()) + 1
        visible = self.whole.rows(first, last, low, high).expand(len(queries), 1, last - first, high - low)
        index = (queries - first)[:, None, :, None].expand(-1, 1, -1, high - low)
        return visible.gather(2, index)

    def queries_per_key(self, valid: Tensor) -> Tensor:
        raise UnsupportedModelError(
            "Sinks cannot be measured while tokens are skipped, since their queries are missing; pin without skip=True "
            "(the logits are the same)."
        )


def _all_tokens(computed: Tensor, constant: Tensor, kept: Tensor) -> Tensor:
    """Keys or values (batch, kv_head, token, d_head) of all tokens from those of the kept ones and the constants."""
    batch, heads, _, size = computed.shape
    whole = constant[None].to(computed).expand(batch, -1, -1, -1)
    return whole.scatter(2, kept[:, None, :, None].expand(-1, heads, -1, size), computed)


def _gathered(tensor: Tensor, kept: Tensor) -> Tensor:
    """Chosen tokens of (batch or 1, token, channel)."""
    tensor = tensor.expand(len(kept), -1, -1)
    return tensor.gather(1, _index(kept, tensor))


def _index(kept: Tensor, like: Tensor) -> Tensor:
    return kept[..., None].expand(-1, -1, like.shape[-1])
