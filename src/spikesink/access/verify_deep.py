"""Everything that can be checked of a model before its numbers are believed: `spikesink verify`.

The load-time checks of `verify`, layer by layer, and more of the same kind: the attention maps themselves, padding on
either side, sequences long enough for several row blocks and for the model's windows.
"""

import math
import sys
import time
from dataclasses import dataclass, field

from torch import Tensor

from spikesink.access.model import AccessedModel
from spikesink.access.padding import padded_differences
from spikesink.access.protocol import AttentionRows, Progress, full_batch, no_progress
from spikesink.access.verify import (
    PROBE_TOKENS,
    Calls,
    Sums,
    Writes,
    attention_differences,
    causality,
    check_calls,
    difference,
    limits,
    probe_ids,
    watched,
    watched_eager,
)
from spikesink.errors import InputError, SpikesinkError, VerificationError
from spikesink.records import Check, Provenance, Timing, VerificationRecord, package_versions

LONG_TOKENS = 512
"""At least this many tokens in the longest check: two row blocks of attention."""
LONGEST_TOKENS = 4608
"""More are checked when asked for: eager attention holds heads x tokens x tokens weights."""
BEYOND_WINDOW = 64

Finding = tuple[dict[int, float], str | None]
"""Differences by block, or the reason why there are none."""


class _Maps:
    """Observer: attention maps (1, head, query, key) of every block, and the most keys that a query saw."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.maps: dict[int, Tensor] = {}
        self.keys_seen: dict[int, int] = {}
        self.has_virtual_keys = False

    def on_attention_rows(self, rows: AttentionRows) -> None:
        seen = int(rows.visible.sum(-1).max())
        self.keys_seen[rows.block] = max(seen, self.keys_seen.get(rows.block, 0))
        self.has_virtual_keys |= rows.virtual_mass is not None
        if self.keep:
            tokens = rows.total_queries
            whole = self.maps.setdefault(rows.block, rows.weights.new_zeros(*rows.weights.shape[:2], tokens, tokens))
            whole[:, :, rows.query_start : rows.query_stop, rows.key_start :][..., : rows.weights.shape[-1]] = (
                rows.weights
            )


class _Largest:
    """Observer: the largest residual magnitude."""

    value = 0.0

    def on_residual(self, _block: int, hidden: Tensor) -> None:
        self.value = max(self.value, float(hidden.abs().max()))


@dataclass
class _Findings:
    """What the checks found so far."""

    accessed: AccessedModel
    checks: list[Check] = field(default_factory=list)
    keys_seen: dict[int, int] = field(default_factory=dict)
    largest: float = 0.0

    def add(self, name: str, what: str, tokens: int, limit: float, finding: Finding) -> None:
        found, reason = finding
        layers: list[float | None] = [None] * self.accessed.n_layers
        for block, wrong in found.items():
            index = (block - 1) // 2
            layers[index] = _larger(layers[index], wrong)
        largest: float | None = None
        for wrong in layers:
            largest = largest if wrong is None else _larger(largest, wrong)
        self.checks.append(
            Check(
                name=name,
                what=what,
                tokens=tokens,
                limit=limit,
                by_layer=layers,
                largest=largest,
                layer_index=None if largest is None else layers.index(largest),
                holds=None if largest is None else largest <= limit,
                reason=reason,
            )
        )


def _larger(one: float | None, other: float) -> float:
    """The larger; what JSON cannot say (not a number, infinite) counts as the largest float."""
    other = other if math.isfinite(other) else sys.float_info.max
    return other if one is None else max(one, other)


def verify_deep(
    accessed: AccessedModel, *, tokens: int | None = None, progress: Progress = no_progress
) -> VerificationRecord:
    """Run every check on every layer; a record also of a model that fails one (`verified` False).

    tokens: length of the longest check; by default LONG_TOKENS, or more where the model has windows. Raises InputError
    for a length that the model has no positions for.
    """
    started = time.perf_counter()
    length = _length(accessed, tokens)
    found = _Findings(accessed)
    stages = [
        _arithmetic,
        _maps,
        lambda f: _padding(f, "right"),
        lambda f: _padding(f, "left"),
        lambda f: _long(f, length),
    ]
    for done, stage in enumerate(stages):
        progress("verify", done, len(stages))
        stage(found)
    progress("verify", len(stages), len(stages))
    return VerificationRecord(
        verified=all(check.holds is not False for check in found.checks),
        checks=found.checks,
        keys_seen=[found.keys_seen.get(layer.attention.block) for layer in accessed.layers],
        largest_residual=found.largest,
        not_guaranteed=_not_guaranteed(found, length),
        provenance=Provenance(
            model=accessed.provenance,
            tokens={"source": "pseudo-random ids, seed 0", "longest": length},
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


def _arithmetic(found: _Findings) -> None:
    """The load-time checks again, with every layer's difference kept."""
    accessed = found.accessed
    batch = full_batch(probe_ids(accessed.vocab_size))
    sums, ours, calls = Sums(accessed), Writes(), Calls()
    logits = watched(accessed, batch, sums, ours, calls)
    check_calls(accessed, calls)
    limit_sum, limit_attention = limits(accessed)
    found.add("sums", "writes add up to the next residual", PROBE_TOKENS, limit_sum, (sums.differences, None))
    attention = attention_differences(accessed, batch, ours.writes)
    found.add(
        "attention", "attention writes what eager attention writes", PROBE_TOKENS, limit_attention, (attention, None)
    )
    wrong = _larger(None, causality(accessed, batch, logits))
    found.checks.append(
        Check(
            name="causality",
            what="the last token changes no earlier prediction",
            tokens=PROBE_TOKENS,
            limit=limit_sum,
            by_layer=[],
            largest=wrong,
            layer_index=None,
            holds=wrong <= limit_sum,
        )
    )


def _maps(found: _Findings) -> None:
    """Our attention weights against the maps that the family's eager attention returns."""
    accessed = found.accessed
    batch = full_batch(probe_ids(accessed.vocab_size))
    ours = _Maps(keep=True)
    watched(accessed, batch, ours)
    output = watched_eager(accessed, batch, output_attentions=True)
    theirs = [each for each in getattr(output, "attentions", None) or () if isinstance(each, Tensor)]
    blocks = [sites.block for sites in accessed.attending]
    finding: Finding = ({}, "the model's eager attention returns no maps")
    pairs = list(zip(blocks, theirs, strict=False))
    if len(theirs) == len(blocks) and all(each.shape == ours.maps[block].shape for block, each in pairs):
        finding = {block: difference(ours.maps[block], _with_sinks(each, ours, block)) for block, each in pairs}, None
    found.add("maps", "attention weights are eager attention's", PROBE_TOKENS, limits(accessed)[1], finding)


def _with_sinks(theirs: Tensor, ours: _Maps, block: int) -> Tensor:
    """Eager's map, where it was taken before a learned sink got its share (granite), with that share taken off."""
    before = ours.has_virtual_keys and bool(((theirs.float().sum(-1) - 1).abs() < 1e-3).all())
    return theirs * ours.maps[block].sum(-1, keepdim=True) if before else theirs


def _padding(found: _Findings, side: str) -> None:
    """A short and a long sequence padded together: as eager attention has them, and as each is alone."""
    accessed = found.accessed
    limit = limits(accessed)[1]
    differences: dict[int, float] = {}
    reason = None
    try:
        differences, alone = padded_differences(accessed, side)
        apart = max(alone.values())
        if side == "left" and not apart <= limit:
            reason = f"positions do not follow it ({apart:.2g} off what each sequence is alone); refused when scanned"
        else:
            differences = {block: _larger(wrong, differences.get(block, 0.0)) for block, wrong in alone.items()}
    except SpikesinkError as error:
        differences, reason = {}, f"padded batches cannot be run: {error}"
    what = f"padded on the {side}: as eager attention has it, and as each sequence is alone"
    found.add(f"padding {side}", what, PROBE_TOKENS, limit, (differences, reason))


def _long(found: _Findings, tokens: int) -> None:
    """Several row blocks, and windows narrower than the sequence."""
    accessed = found.accessed
    batch = full_batch(probe_ids(accessed.vocab_size, tokens))
    sums, ours, seen, largest = Sums(accessed), Writes(), _Maps(keep=False), _Largest()
    watched(accessed, batch, sums, ours, seen, largest)
    limit_sum, limit_attention = limits(accessed)
    found.add("long sums", "writes add up to the next residual", tokens, limit_sum, (sums.differences, None))
    attention = attention_differences(accessed, batch, ours.writes)
    found.add(
        "long attention", "attention writes what eager attention writes", tokens, limit_attention, (attention, None)
    )
    found.keys_seen, found.largest = seen.keys_seen, largest.value


def _not_guaranteed(found: _Findings, tokens: int) -> list[str]:
    """What passing these checks does not say."""
    accessed = found.accessed
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
    said += [f"{check.name}: {check.reason}" for check in found.checks if check.reason]
    return said
