"""The checks of every layer against the model's own arithmetic: some whenever a model is loaded, all by `verify`.

CHECKS is the one list of them. `verify`, on loading, goes through those marked so and raises at the first that does
not hold; `verify_all` runs every one and makes a record, also of a model that fails.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikesink.access.capture import Tap, hooked, inputs_of, observing, run, without_gradient
from spikesink.access.comparison import PROBE_TOKENS, difference, probe_ids, tolerances
from spikesink.access.model import AccessedModel
from spikesink.errors import InputError, SpikesinkError, VerificationError, short
from spikesink.observer import (
    AttentionInputs,
    AttentionRows,
    Batch,
    Observer,
    Progress,
    full_batch,
    notebook_progress,
)
from spikesink.positions import placed
from spikesink.records import Check, Provenance, Timing, VerificationRecord, package_versions

LONG_TOKENS = 512
"""At least this many tokens in the longest check: two row blocks of attention."""
LONGEST_TOKENS = 4608
"""More are checked when asked for: eager attention holds heads x tokens x tokens weights."""
BEYOND_WINDOW = 64
PADDING = 5


@dataclass(frozen=True)
class Differences:
    """The largest relative difference by block (0: of the model as a whole), or the reason why there is none."""

    by_block: dict[int, float]
    reason: str | None = None


@dataclass(frozen=True)
class LayerCheck:
    """One thing that must hold in every layer."""

    name: str
    what: str
    find: Callable[["Passes"], Differences]
    tolerance: str
    """Which of `Tolerances` the differences must stay within."""
    refusal: str = ""
    """Of a check that loading raises at: what is wrong, with {layer_index}, {block}, {wrong} and {limit} to fill in."""
    long: bool = False
    """Whether it looks at the longest pass."""

    def limit(self, dtype: torch.dtype) -> float:
        """The largest difference that holds."""
        return getattr(tolerances(dtype), self.tolerance)


class Passes:
    """The forward passes that checks look at, each run when first asked for: a short one, and a long one."""

    def __init__(self, accessed: AccessedModel, length: int = PROBE_TOKENS) -> None:
        self.accessed, self.length = accessed, length

    @cached_property
    def short(self) -> "Pass":
        seen = Pass(self.accessed, PROBE_TOKENS)
        check_calls(self.accessed, seen.calls)
        return seen

    @cached_property
    def long(self) -> "Pass":
        return Pass(self.accessed, self.length)


class Pass:
    """One forward pass on the probe ids: what adds up, what attention wrote, what ran, what each query saw."""

    def __init__(self, accessed: AccessedModel, tokens: int) -> None:
        self.accessed = accessed
        self.batch = full_batch(probe_ids(accessed.vocab_size, tokens))
        self.sums, self.writes, self.calls = Additivity(accessed), Writes(), Calls()
        self.logits = watched(accessed, self.batch, self.sums, self.writes, self.calls)

    @cached_property
    def attention(self) -> dict[int, float]:
        return attention_differences(self.accessed, self.batch, self.writes.writes)


class Additivity(Observer):
    """How far each block's write is from adding up to the next residual; holds one residual at a time."""

    def __init__(self, accessed: AccessedModel) -> None:
        self.differences: dict[int, float] = {}
        self._norms = {sites.block: sites.residual_norm for sites in accessed.blocks()}
        self._before: Tensor | None = None
        self._writes: list[Tensor] = []

    def on_write(self, block: int, write: Tensor) -> None:
        # Copies, since a layer may go on to change its tensors in place.
        self._writes.append(write.clone())

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block > 0 and self._before is not None:
            rebuilt = self._before
            for write in self._writes:
                rebuilt = rebuilt + write
            norm = self._norms[block]
            wrong = difference(rebuilt if norm is None else norm(rebuilt), hidden)
            self.differences[block] = max(wrong, self.differences.get(block, 0.0))
        self._before, self._writes = hidden.clone(), []


class Writes(Observer):
    """What every attention block writes."""

    def __init__(self) -> None:
        self.writes: dict[int, Tensor] = {}

    def on_write(self, block: int, write: Tensor) -> None:
        if block % 2:
            self.writes[block] = write.clone()


class Calls(Observer):
    """How often every layer and attention ran, the most keys a query saw, and the largest residual."""

    def __init__(self) -> None:
        self.layers: Counter[int] = Counter()
        self.attentions: Counter[int] = Counter()
        self.keys_seen: dict[int, int] = {}
        self.largest = 0.0

    def on_residual(self, block: int, hidden: Tensor) -> None:
        self.layers[block] += 1
        self.largest = max(self.largest, float(hidden.abs().max()))

    def on_attention(self, inputs: AttentionInputs) -> None:
        self.attentions[inputs.block] += 1

    def on_attention_rows(self, rows: AttentionRows) -> None:
        keys = int(rows.visible.sum(-1).max())
        self.keys_seen[rows.block] = max(keys, self.keys_seen.get(rows.block, 0))


class Maps(Observer):
    """Attention maps (1, head, query, key) of every block."""

    def __init__(self) -> None:
        self.maps: dict[int, Tensor] = {}
        self.has_virtual_keys = False

    def on_attention_rows(self, rows: AttentionRows) -> None:
        self.has_virtual_keys |= rows.virtual_mass is not None
        tokens, weights = rows.total_queries, rows.weights
        whole = self.maps.setdefault(rows.block, weights.new_zeros(*weights.shape[:2], tokens, tokens))
        whole[:, :, rows.query_start : rows.query_stop, rows.key_start :][..., : weights.shape[-1]] = weights


class Residuals(Observer):
    """The residual after every block, padding left out: (tokens, channel) by sequence."""

    def __init__(self) -> None:
        self.after: dict[int, list[Tensor]] = {}

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block > 0:
            rows = zip(hidden, self.batch.valid.to(hidden.device), strict=True)
            self.after[block] = [row[valid].clone() for row, valid in rows]


class _Against(Observer):
    """Compares attention writes with ones that were kept, and lets those go."""

    def __init__(self, kept: dict[int, Tensor], valid: Tensor | None) -> None:
        self.kept = kept
        self.valid = valid
        self.differences: dict[int, float] = {}

    def on_write(self, block: int, write: Tensor) -> None:
        if block in self.kept:
            self.differences[block] = difference(self.kept.pop(block), write, self.valid)


def causality(passes: Passes) -> Differences:
    """How much changing the last token changes earlier predictions."""
    accessed, before = passes.accessed, passes.short
    changed = before.batch.ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % accessed.vocab_size
    return Differences({0: difference(before.logits[:, :-1], watched(accessed, full_batch(changed))[:, :-1])})


def maps(passes: Passes) -> Differences:
    """Our attention weights against the maps that the family's eager attention returns."""
    accessed = passes.accessed
    batch = full_batch(probe_ids(accessed.vocab_size))
    ours = Maps()
    watched(accessed, batch, ours)
    output = watched_eager(accessed, batch, output_attentions=True)
    theirs = [each for each in getattr(output, "attentions", None) or () if isinstance(each, Tensor)]
    blocks = [sites.block for sites in accessed.attending]
    pairs = list(zip(blocks, theirs, strict=False))
    if len(theirs) == len(blocks) and all(each.shape == ours.maps[block].shape for block, each in pairs):
        return Differences(
            {block: difference(ours.maps[block], _with_sinks(each, ours, block)) for block, each in pairs}
        )
    return Differences({}, "the model's eager attention returns no maps")


def _with_sinks(theirs: Tensor, ours: Maps, block: int) -> Tensor:
    """Eager's map, where it was taken before a learned sink got its share (granite), with that share taken off."""
    before = ours.has_virtual_keys and bool(((theirs.float().sum(-1) - 1).abs() < 1e-3).all())
    return theirs * ours.maps[block].sum(-1, keepdim=True) if before else theirs


def padding(side: str) -> Callable[[Passes], Differences]:
    """A short and a long sequence padded together: as eager attention has them, and as each is alone."""

    def find(passes: Passes) -> Differences:
        try:
            together, alone = padded_differences(passes.accessed, side)
        except SpikesinkError as error:
            return Differences({}, f"padded batches cannot be run: {error}")
        apart = max(alone.values())
        if side == "left" and not apart <= tolerances(passes.accessed.dtype).attention:
            reason = f"positions do not follow it ({apart:.2g} off what each sequence is alone); refused when scanned"
            return Differences(together, reason)
        return Differences({block: _larger(together.get(block), wrong) for block, wrong in alone.items()})

    return find


CHECKS = (
    LayerCheck(
        "sums",
        "writes add up to the next residual",
        lambda passes: Differences(passes.short.sums.differences),
        "sums",
        "Block {placed}: the write does not add up to the next residual; relative difference "
        "{wrong:.2g}, limit {limit:.0e}. The model has an arrangement that spikesink does not know; measuring it would "
        "be wrong.",
    ),
    LayerCheck(
        "attention",
        "attention writes what eager attention writes",
        lambda passes: Differences(passes.short.attention),
        "attention",
        "Block {placed}: attention rebuilt from query, key and value differs from the "
        "model's own eager attention by {wrong:.2g} (relative), limit {limit:.0e}; refused.",
    ),
    LayerCheck(
        "causality",
        "the last token changes no earlier prediction",
        causality,
        "sums",
        "Changing the last token changed earlier predictions by {wrong:.2g} (relative; limit {limit:.0e}): the model "
        "is not causal, so it is no decoder-only language model.",
    ),
    LayerCheck("maps", "attention weights are eager attention's", maps, "attention"),
    *(
        LayerCheck(
            f"padding {side}",
            f"padded on the {side}: as eager attention has it, and as each sequence is alone",
            padding(side),
            "attention",
        )
        for side in ("right", "left")
    ),
    LayerCheck(
        "long sums",
        "writes add up to the next residual",
        lambda passes: Differences(passes.long.sums.differences),
        "sums",
        long=True,
    ),
    LayerCheck(
        "long attention",
        "attention writes what eager attention writes",
        lambda passes: Differences(passes.long.attention),
        "attention",
        long=True,
    ),
)
"""In the order they are made. Those with a refusal are made on loading, too; the long ones look past windows."""


def verify(accessed: AccessedModel) -> dict[str, float]:
    """The largest difference of every check that loading makes; VerificationError at the first over its limit."""
    passes, largest = Passes(accessed), {}
    for check in CHECKS:
        if not check.refusal:
            continue
        limit = check.limit(accessed.dtype)
        by_block = check.find(passes).by_block
        for block, wrong in sorted(by_block.items()):
            if not wrong <= limit:
                raise VerificationError(
                    check.refusal.format(placed=accessed.blocks()[block - 1].place, wrong=wrong, limit=limit)
                )
        largest[check.name] = max(by_block.values(), default=0.0)
    return {
        "largest_sum_difference": largest["sums"],
        "largest_attention_difference": largest["attention"],
        "largest_causality_difference": largest["causality"],
    }


def verify_all(
    accessed: AccessedModel, *, tokens: int | None = None, progress: Progress = notebook_progress
) -> VerificationRecord:
    """Run every check on every layer; a record also of a model that fails one (`verified` False).

    tokens: length of the longest check; by default LONG_TOKENS, or more where the model has windows. Raises InputError
    for a length that the model has no positions for.
    """
    started = time.perf_counter()
    passes = Passes(accessed, _length(accessed, tokens))
    made = []
    for done, check in enumerate(CHECKS):
        progress("verify", done, len(CHECKS))
        made.append(_checked(check, passes))
    progress("verify", len(CHECKS), len(CHECKS))
    calls = passes.long.calls
    return VerificationRecord(
        verified=all(check.holds is not False for check in made),
        checks=made,
        keys_seen=[calls.keys_seen.get(layer.attention.block) for layer in accessed.layers],
        largest_residual=calls.largest,
        not_guaranteed=_not_guaranteed(accessed, made, passes.length),
        provenance=Provenance(
            model=accessed.provenance,
            tokens={"source": "pseudo-random ids, seed 0", "longest": passes.length},
            versions=package_versions(),
            settings={"attention": "spikesink", "reference": "eager"},
        ),
        timing=Timing.now(
            load_s=accessed.load_s,
            forward_s=time.perf_counter() - started,
            total_s=time.perf_counter() - started + accessed.load_s,
        ),
    )


def require_verified(record: VerificationRecord) -> None:
    """Raises VerificationError with the layer, the difference and the limit of the first check that does not hold."""
    for check in record.checks:
        if check.holds is False:
            where = "" if check.layer_index is None else f"layer_index {check.layer_index}: "
            raise VerificationError(
                f"Check '{check.name}' fails: {where}{check.what}; relative difference {check.largest:.2g}, limit "
                f"{check.limit:.0e}, {check.tokens} tokens. Refused: what is measured there would be wrong."
            )


def check_left_padding(accessed: AccessedModel, valid: Tensor) -> None:
    """Refuse a batch with padding on the left, valid (sequence, token), where the model's positions do not follow it.

    Some families count positions from the first column whatever the mask says (BART, RoBERTa): a sequence that is
    padded on the left is another one to them. Raises InputError.
    """
    if bool(valid[:, 0].all()):
        return
    limit = tolerances(accessed.dtype).attention
    worst = max(padded_differences(accessed, "left")[1].values())
    if not worst <= limit:
        raise InputError(
            f"Padding on the left, but the positions of '{accessed.name}' do not follow it: its residuals then differ "
            f"from each sequence's alone by {worst:.2g} (relative; limit {limit:.0e}). Pad on the right."
        )


def check_calls(accessed: AccessedModel, calls: Calls) -> None:
    """Every layer once, attention in exactly those that are declared to have it; raises VerificationError."""
    declared = {sites.block for sites in accessed.attending}
    missing = sorted(declared - set(calls.attentions))
    if missing:
        raise VerificationError(
            f"{len(missing)} of {accessed.n_layers} layers (first: layer_index {missing[0] // 2}) do not call "
            "attention through transformers' attention registry; their attention cannot be measured exactly."
        )
    if not declared:
        raise VerificationError("No layer of the model attends, so it has no attention sinks to measure; refused.")
    unexpected = [sites.block for sites in accessed.blocks() if sites.kind == "mixer" and calls.attentions[sites.block]]
    if unexpected:
        raise VerificationError(
            f"Layer_index {unexpected[0] // 2} attends although its config declares a layer without attention; refused."
        )
    for what, counts, blocks in (
        ("runs", calls.layers, [sites.ffn.block for sites in accessed.layers]),
        ("attends", calls.attentions, sorted(declared | set(calls.attentions))),
    ):
        odd = next((block for block in blocks if counts[block] != 1), None)
        if odd is not None:
            raise VerificationError(
                f"Layer_index {(odd - 1) // 2} {what} {counts[odd]} times in one forward pass; expected once. A layer "
                "with more than one pass (a loop, differential attention) has no single residual or attention map."
            )


def watched(accessed: AccessedModel, batch: Batch, *observers: object) -> Tensor:
    """One forward under the measuring attention; returns the logits.

    A model that fails under it is refused: VerificationError with the reason.
    """
    with observing(accessed, observers):
        try:
            return run(accessed, batch)
        except SpikesinkError:
            raise
        except Exception as error:
            raise _failed("with spikesink's attention and hooks", error) from error


def watched_eager(accessed: AccessedModel, batch: Batch, *observers: object, **options: Any) -> Any:
    """One forward under the family's own eager attention, with the same hooks; returns the model's output."""
    model: PreTrainedModel = accessed.model
    before = model.config._attn_implementation or "eager"
    training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.callback(model.set_attn_implementation, before)
        model.set_attn_implementation("eager")
        stack.enter_context(hooked(accessed, Tap(observers=list(observers))))
        stack.enter_context(without_gradient(model))
        try:
            return model(**inputs_of(batch, accessed.device), use_cache=False, **options)
        except SpikesinkError:
            raise
        except Exception as error:
            raise _failed("with its own eager attention", error) from error


def _failed(how: str, error: Exception) -> VerificationError:
    text = short(error)
    if "MaskPlan" in text:
        return VerificationError(
            "The model computes with the attention mask instead of handing it on (sparse, indexed or biased "
            "attention), so the mask registry does not tell which keys a query sees; refused."
        )
    return VerificationError(f"The model's forward pass fails {how} ({type(error).__name__}: {text}); refused.")


def attention_differences(accessed: AccessedModel, batch: Batch, ours: dict[int, Tensor]) -> dict[int, float]:
    """Our attention writes (which are let go) against the family's own eager ones, by block; padding left out."""
    against = _Against(ours, batch.valid.to(accessed.device) if batch.padded else None)
    watched_eager(accessed, batch, against)
    if against.kept:
        raise VerificationError(
            f"Block {placed(min(against.kept))} writes under spikesink's attention but not under the model's own; "
            "refused."
        )
    return against.differences


def padded_differences(accessed: AccessedModel, side: str) -> tuple[dict[int, float], dict[int, float]]:
    """By block, of a short and a long sequence together: attention against eager's, residuals against each alone."""
    ids = probe_ids(accessed.vocab_size, 2 * PROBE_TOKENS).view(2, PROBE_TOKENS)
    valid = torch.ones_like(ids, dtype=torch.bool)
    real = slice(PROBE_TOKENS - PADDING) if side == "right" else slice(PADDING, None)
    valid[1] = False
    valid[1, real] = True
    batch = Batch(ids=ids, valid=valid)
    together, ours = Residuals(), Writes()
    watched(accessed, batch, together, ours)
    alone: dict[int, float] = {}
    for row, tokens in enumerate((slice(None), real)):
        single = full_batch(ids[row : row + 1, tokens])
        apart = Residuals()
        watched(accessed, single, apart)
        for block, (hidden,) in apart.after.items():
            alone[block] = max(difference(together.after[block][row], hidden), alone.get(block, 0.0))
    return attention_differences(accessed, batch, ours.writes), alone


def _checked(check: LayerCheck, passes: Passes) -> Check:
    """The record of one check: its differences by layer, and whether all are within the limit."""
    accessed, seen = passes.accessed, check.find(passes)
    whole = set(seen.by_block) == {0}
    layers: list[float | None] = [] if whole else [None] * accessed.n_layers
    largest: float | None = None
    for block, wrong in seen.by_block.items():
        largest = _larger(largest, wrong)
        if not whole:
            index = (block - 1) // 2
            layers[index] = _larger(layers[index], wrong)
    limit = check.limit(accessed.dtype)
    return Check(
        name=check.name,
        what=check.what,
        tokens=passes.length if check.long else PROBE_TOKENS,
        limit=limit,
        by_layer=layers,
        largest=largest,
        layer_index=layers.index(largest) if largest in layers and largest is not None else None,
        holds=None if largest is None else largest <= limit,
        reason=seen.reason,
    )


def _larger(one: float | None, other: float) -> float:
    """The larger; what JSON cannot say (not a number, infinite) counts as the largest float."""
    other = other if math.isfinite(other) else sys.float_info.max
    return other if one is None else max(one, other)


def _length(accessed: AccessedModel, asked: int | None) -> int:
    most = accessed.max_positions
    if asked is not None:
        if asked < 2 or (most is not None and asked > most):
            raise InputError(f"Got {asked} tokens; expected 2 to the model's {most} positions.")
        return asked
    wanted = min(max(LONG_TOKENS, _window(accessed) + BEYOND_WINDOW), LONGEST_TOKENS)
    return wanted if most is None else min(wanted, most)


def _window(accessed: AccessedModel) -> int:
    """The widest attention window that the config names, 0 for none."""
    names = ("sliding_window", "attention_chunk_size", "local_attention", "window_size", "sliding_window_size")
    widths = [getattr(accessed.config, name, None) for name in names]
    return max((width for width in widths if isinstance(width, int)), default=0)


def _not_guaranteed(accessed: AccessedModel, checks: list[Check], tokens: int) -> list[str]:
    """What passing these checks does not say."""
    said = [
        f"sequences longer than {tokens} tokens (--seq-len checks more)",
        f"another dtype or device than {str(accessed.dtype).removeprefix('torch.')} on {accessed.device}",
        "generation with a KV cache, and training mode",
        "that the model's own eager attention is right: it is what ours is held against",
        "embedding, final norm and unembedding, which are run as they are and not rebuilt",
        "that the weights are the ones their authors meant; names and shapes are checked on loading, values are not",
    ]
    if _window(accessed) >= tokens:
        said.append(f"windows: the config names one of {_window(accessed)} tokens, which {tokens} tokens do not reach")
    if any("expert" in name for name, _ in accessed.model.named_modules()):
        said.append("experts that no probe token was routed to")
    if accessed.hybrid:
        said.append("recurrences and convolutions: their writes add up, but what they compute is not rebuilt")
    said += [f"{check.name}: {check.reason}" for check in checks if check.reason]
    return said
