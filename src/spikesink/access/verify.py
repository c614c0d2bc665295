"""The checks of every layer against the model's own arithmetic: some whenever a model is loaded, all by `verify`.

CHECKS (`access/checks.py`) is the one list of them. `verify`, on loading, goes through those marked so and raises at
the first that does not hold; `verify_all` runs every one and makes a record, also of a model that fails.
"""

import time

from spikesink.access.checks import CHECKS, LayerCheck, Passes, larger
from spikesink.access.comparison import PROBE_TOKENS
from spikesink.access.model import AccessedModel
from spikesink.errors import InputError, VerificationError
from spikesink.observer import Progress, notebook_progress
from spikesink.positions import layer_of
from spikesink.records import Check, Provenance, Timing, VerificationRecord, package_versions

LONG_TOKENS = 512
"""At least this many tokens in the longest check: two row blocks of attention."""
LONGEST_TOKENS = 4608
"""More are checked when asked for: eager attention holds heads x tokens x tokens weights."""
BEYOND_WINDOW = 64


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


def _checked(check: LayerCheck, passes: Passes) -> Check:
    """The record of one check: its differences by layer, and whether all are within the limit."""
    accessed, seen = passes.accessed, check.find(passes)
    whole = set(seen.by_block) == {0}
    layers: list[float | None] = [] if whole else [None] * accessed.n_layers
    largest: float | None = None
    for block, wrong in seen.by_block.items():
        largest = larger(largest, wrong)
        if not whole:
            index = layer_of(block)
            layers[index] = larger(layers[index], wrong)
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
