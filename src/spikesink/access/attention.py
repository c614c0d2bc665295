"""The measuring attention: exact, in row blocks, the same for every architecture of the attention registry.

Registered with transformers' AttentionInterface, it receives post-RoPE query, key and value of every family, with
softcap, learned sinks and normaliser as keyword arguments. It computes the block's own softmax and P V over row
blocks of queries, so a T x T map never exists, and shows each row block to the observers. Where all of them are content
with sums over queries, the blocks are tiles that stay in the processor's cache, or on a GPU FlexAttention's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from spikesink.access import fused_attention
from spikesink.access.masks import MaskPlan, hide, plain_plan, plan_mask
from spikesink.access.protocol import check_finite, listeners
from spikesink.access.tiled_attention import Problem, attend_tiled, segments
from spikesink.errors import UnsupportedModelError
from spikesink.observer import AttentionInputs, AttentionRows, AttentionSums
from spikesink.positions import placed

BACKEND = "spikesink"
ROW_ELEMENTS = 4_000_000
"""Elements (batch x head x row x key) of attention weights held at once; 16 MB in float32."""

_HARMLESS = frozenset(
    {"sliding_window", "is_causal", "position_ids", "use_cache", "cache", "cache_position", "past_key_values"}
    | {"layer_past", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"}
    | {"num_items_in_batch", "logits_to_keep"}
)
"""Options that change nothing here: the mask plan carries windows, and there is no cache."""


@dataclass(frozen=True)
class Normaliser:
    """How scores become weights: softmax with optional learned sinks, or sigmoid."""

    kind: str
    learned_sinks: Tensor | None
    sigmoid_bias: Tensor | float

    def __call__(self, scores: Tensor, invisible: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weights (batch, head, row, key) in float32 and the learned sinks' mass (batch, head, row) or None."""
        if self.kind == "sigmoid":
            return torch.sigmoid(scores.float() + self.sigmoid_bias), None
        if self.learned_sinks is None:
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
            mass = None
        else:
            sinks = self.learned_sinks.reshape(1, -1, 1, 1).to(scores)
            scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], dim=-1)
            combined = torch.softmax(scores, dim=-1, dtype=torch.float32)
            weights, mass = combined[..., :-1], combined[..., -1]
        if invisible is not None:
            # A query that sees nothing (padding on the left) would be NaN; it attends to nothing instead.
            blind = invisible.all(-1, keepdim=True)
            if bool(blind.any()):
                weights = weights.masked_fill(blind, 0.0)
        return weights, mass


@dataclass(frozen=True)
class Call:
    """One call of the attention function, its options resolved."""

    block: int
    query: Tensor
    key: Tensor
    value: Tensor
    plan: MaskPlan
    scaling: float
    softcap: float | None
    position_bias: Tensor | None
    normaliser: Normaliser
    virtual_keys: int

    @property
    def groups(self) -> int:
        return self.query.shape[1] // self.key.shape[1]

    def row_step(self) -> int:
        batch, heads, _, _ = self.query.shape
        return max(16, min(256, ROW_ELEMENTS // max(1, batch * heads * self.key.shape[2])))


def attend(call: Call, observers: list, editors: list, valid: Tensor | None) -> Tensor:
    """Attention output (batch, head, token, d_head), computed and shown in row blocks. Eq. 6-11."""
    key, value = call.key, call.value
    for edit in listeners(editors, "edit_keys"):
        key = edit(call.block, key)
    for edit in listeners(editors, "edit_values"):
        value = edit(call.block, value)
    call = replace(call, key=key, value=value)
    # An editor may need the queries as well as the scores: it is told what observers are.
    _announce(call, [*observers, *editors], valid)
    if _only_sums(call, observers, editors, valid):
        output = _attend_summed(call, observers)
    else:
        output = _attend_rows(call, observers, editors, valid)
    if observers:
        # Scores that overflow make weights that are not numbers, which no threshold would ever count as a sink.
        check_finite(f"The attention of block {placed(call.block)}", output)
    return output


def _only_sums(call: Call, observers: list, editors: list, valid: Tensor | None) -> bool:
    """Whether nobody sees or edits rows, and what computes sums alone computes what this call asks for."""
    wanted = any(listeners(editors, name) for name in ("edit_scores", "edit_weights", "edit_output"))
    plain = call.virtual_keys == 0 and call.position_bias is None and call.normaliser.kind == "softmax"
    padded = valid is not None or call.plan.arguments["attention_mask"] is not None
    device = call.query.device.type
    dtypes = {call.query.dtype, call.key.dtype, call.value.dtype}
    counted = (device == "cuda" and fused_attention.ASKED) or (device == "cpu" and dtypes == {torch.float32})
    return (
        plain
        and counted
        and not (wanted or padded or listeners(observers, "on_attention_rows") or torch.is_grad_enabled())
        and call.query.shape[2] == call.key.shape[2]
    )


def _attend_summed(call: Call, observers: list) -> Tensor:
    sinks = call.normaliser.learned_sinks
    problem = Problem(
        query=call.query,
        key=call.key.contiguous(),
        value=call.value.contiguous(),
        plan=call.plan,
        scaling=call.scaling,
        softcap=call.softcap,
        learned_sinks=None if sinks is None else sinks.flatten().float(),
    )
    listening = listeners(observers, "on_attention_sums")
    queries = call.query.shape[2]
    pieces = list(segments(0, queries)) if listening else []
    attend_summed = attend_tiled if call.query.device.type == "cpu" else fused_attention.attend_fused
    output, sums = attend_summed(problem, [stop for _, stop in pieces])
    for (start, stop), mass, virtual in zip(pieces, sums.mass, sums.virtual, strict=True):
        for listen in listening:
            listen(AttentionSums(call.block, start, stop, 0, queries, mass, None if sinks is None else virtual))
    return output


def _attend_rows(call: Call, observers: list, editors: list, valid: Tensor | None) -> Tensor:
    """In row blocks, each shown and edited."""
    value = call.value
    queries, heads = call.query.shape[2], call.query.shape[1]
    output = call.query.new_empty(call.query.shape[0], heads, queries, value.shape[-1])
    for start in range(0, queries, call.row_step()):
        stop = min(start + call.row_step(), queries)
        low, high = call.plan.key_range(start, stop)
        weights, mass, columns = _row_weights(call, start, stop, low, high, editors)
        shown = value[:, :, columns]
        output[:, :, start:stop] = _grouped(weights.to(value.dtype), shown, call.groups)
        for edit in listeners(editors, "edit_output"):
            rows = _rows(call, start, stop, low, high, weights, mass, shown, output)
            output[:, :, start:stop] = edit(call.block, rows)
        for listen in listeners(observers, "on_attention_rows"):
            listen(_rows(call, start, stop, low, high, weights, mass, shown, output))
        if summed := listeners(observers, "on_attention_sums"):
            for sums in sums_of(_rows(call, start, stop, low, high, weights, mass, shown, output), valid):
                for listen in summed:
                    listen(sums)
    return output


def sums_of(rows: AttentionRows, valid: Tensor | None) -> Iterator[AttentionSums]:
    """The sums over queries that tiled attention gives, from a row block."""
    weights, virtual = rows.weights, rows.virtual_mass
    if valid is not None:
        counted = valid[:, None, rows.queries].to(weights.device)
        weights = weights * counted[..., None]
        virtual = None if virtual is None else virtual * counted
    for start, stop in segments(rows.query_start, rows.query_stop):
        own = slice(start - rows.query_start, stop - rows.query_start)
        yield AttentionSums(
            block=rows.block,
            query_start=start,
            query_stop=stop,
            key_start=rows.key_start,
            total_queries=rows.total_queries,
            mass=weights[:, :, own].sum(2),
            virtual_mass=None if virtual is None else virtual[:, :, own].sum(2),
        )


def _announce(call: Call, observers: list, valid: Tensor | None) -> None:
    real = slice(call.virtual_keys, None)
    if valid is None:
        valid = torch.ones(call.query.shape[0], call.query.shape[2], dtype=torch.bool, device=call.query.device)
    inputs = AttentionInputs(
        block=call.block,
        query=call.query,
        key=call.key[:, :, real],
        value=call.value[:, :, real],
        scaling=call.scaling,
        softcap=call.softcap,
        visible_counts=lambda: call.plan.queries_per_key(valid),
    )
    for listen in listeners(observers, "on_attention"):
        listen(inputs)


def _grouped(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """left (b, h, i, j) @ right (b, kv, j, k) with each KV head shared by `groups` heads, without repeating it."""
    batch, heads, rows, inner = left.shape
    product = left.reshape(batch, heads // groups, groups * rows, inner) @ right
    return product.view(batch, heads, rows, right.shape[-1])


def _row_weights(
    call: Call, start: int, stop: int, low: int, high: int, editors: list
) -> tuple[Tensor, Tensor | None, slice | Tensor]:
    """Weights over virtual and visible keys of queries [start, stop), learned-sink mass, key columns used."""
    virtual = call.virtual_keys
    columns: slice | Tensor = slice(virtual + low, virtual + high)
    if virtual:
        columns = torch.cat([torch.arange(virtual), torch.arange(virtual + low, virtual + high)]).to(call.key.device)
    scores = _grouped(call.query[:, :, start:stop] * call.scaling, call.key[:, :, columns].mT, call.groups)
    if call.softcap is not None:
        scores = scores.div_(call.softcap).tanh_().mul_(call.softcap)
    if call.position_bias is not None:
        scores = scores + call.position_bias[..., start:stop, low:high]
    limits = call.plan.limits(start, stop, low, high)
    hide(scores, limits)
    # A query sees itself in the plain causal case, and virtual keys in any.
    invisible = None if call.plan.plain_causal or virtual else limits < 0
    for edit in listeners(editors, "edit_scores"):
        scores[..., virtual:] = edit(call.block, start, low, scores[..., virtual:])
    weights, mass = call.normaliser(scores, invisible)
    for edit in listeners(editors, "edit_weights"):
        weights[..., virtual:] = edit(call.block, start, low, weights[..., virtual:])
    return weights, mass, columns


def _rows(
    call: Call,
    start: int,
    stop: int,
    low: int,
    high: int,
    weights: Tensor,
    mass: Tensor | None,
    value: Tensor,
    output: Tensor,
) -> AttentionRows:
    virtual = call.virtual_keys
    if virtual:
        in_front = weights[..., :virtual].sum(-1)
        mass = in_front if mass is None else mass + in_front
    return AttentionRows(
        block=call.block,
        query_start=start,
        query_stop=stop,
        key_start=low,
        total_queries=call.query.shape[2],
        weights=weights[..., virtual:],
        virtual_mass=mass,
        value=value[:, :, virtual:],
        output=output[:, :, start:stop],
        visible_rows=lambda: call.plan.rows(start, stop, low, high),
    )


_handlers: dict[int, Callable[[nn.Module, Call], Tensor]] = {}
"""By id of the attention module: what serves its calls while a capture is open; see `serving`."""
_blocks: dict[int, int] = {}


def serve(modules: dict[int, int], handler: Callable[[nn.Module, Call], Tensor]) -> None:
    """Route calls of these attention modules (id -> block) to the handler."""
    for key, block in modules.items():
        _handlers[key] = handler
        _blocks[key] = block


def stop_serving(modules: dict[int, int]) -> None:
    """Let these attention modules use their own function again."""
    for key in modules:
        _handlers.pop(key, None)
        _blocks.pop(key, None)


def measured_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    attention_normaliser: str = "softmax",
    sigmoid_bias: Tensor | float = 0.0,
    virtual_keys: int = 0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers' AttentionInterface; refuses what it would have to ignore."""
    unknown = [name for name, option in options.items() if option is not None and name not in _HARMLESS]
    name = type(module).__name__
    if unknown:
        raise UnsupportedModelError(
            f"{name} passes attention options that spikesink does not compute: {', '.join(unknown)}; "
            "measuring would be wrong, so it is refused."
        )
    if dropout:
        raise UnsupportedModelError(f"{name} asks for attention dropout {dropout}; call model.eval() before measuring.")
    if attention_mask is not None and not isinstance(attention_mask, MaskPlan):
        raise UnsupportedModelError(
            f"{name} brings a ready-made mask ({type(attention_mask).__name__}) instead of asking the mask registry; "
            "spikesink cannot tell padding from windows in it, so the model is refused."
        )
    if id(module) not in _handlers:
        raise UnsupportedModelError(f"{name} uses the '{BACKEND}' attention outside spikesink.access.capture.")
    call = Call(
        block=_blocks[id(module)],
        query=query,
        key=key,
        value=value,
        plan=attention_mask if attention_mask is not None else plain_plan(query),
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=softcap,
        position_bias=position_bias,
        normaliser=Normaliser(attention_normaliser, s_aux, sigmoid_bias),
        virtual_keys=virtual_keys,
    )
    return _handlers[id(module)](module, call).transpose(1, 2).contiguous(), None


AttentionInterface.register(BACKEND, measured_attention)
AttentionMaskInterface.register(BACKEND, plan_mask)
