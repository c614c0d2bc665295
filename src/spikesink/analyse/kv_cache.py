"""How many first tokens a streaming KV cache must keep: perplexity against window and kept tokens, measured."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel
from spikesink.access.rotary import rotates
from spikesink.analyse.evaluation import Evaluation, Evaluator
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.window import reassigned_window, streaming_window
from spikesink.records.deployment import REASSIGNED, TOLERANCE_NATS, TRUE, KeptSinks, KvCache, fewest

STAGE = "KV cache"
KEEP = (0, 1, 2, 4, 8)
WINDOWS = (64, 128)
TIMES_WINDOW = 2
"""A window is measured where sequences are at least this many times as long."""
CONTROL_KEEP = 4
HYBRID = "The window is attention's; recurrences and convolutions keep what they have of every token."


def kv_cache(evaluator: Evaluator, ids: Tensor | np.ndarray) -> KvCache:
    """Perplexity of long sequences (sequence, token) under streaming windows that keep the first 0, 1, 2, 4, 8 tokens.

    At true positions, and with the kept tokens' positions reassigned by their places in the cache; where none is kept
    the two are one. Control: as many kept tokens, but not the first one.
    """
    ids = torch.from_numpy(np.asarray(ids).astype(np.int64))
    windows = [window for window in WINDOWS if TIMES_WINDOW * window <= ids.shape[1]]
    if not windows:
        return KvCache(
            applicable=False,
            reason=f"sequences of {ids.shape[1]} tokens; a window of {WINDOWS[0]} needs {TIMES_WINDOW * WINDOWS[0]}",
        )
    if len(ids) < 2:
        return KvCache(applicable=False, reason="one long sequence gives no interval; at least two are needed")
    settings = [(window, keep, 0) for window in windows for keep in KEEP]
    settings += [(window, CONTROL_KEEP, 1) for window in windows]
    long = replace(evaluator, ids=ids)
    reassigned = [(window, keep, 0) for window in windows for keep in KEEP if keep]
    total = len(settings) + len(reassigned) + 1
    evaluator.progress(STAGE, 0, total)
    full = long.loss(f"kv full {ids.shape[1]}")
    table = [_row(None, None, 0, full, full)]
    for index, (window, keep, first) in enumerate(settings):
        evaluator.progress(STAGE, index + 1, total)
        context = streaming_window(evaluator.accessed, window, keep, first)
        result = long.loss(f"kv window {window} keep {keep} from {first}", context)
        table.append(_row(window, keep, first, result, full))
    reason = None
    for index, (window, keep, first) in enumerate(reassigned, start=len(settings)):
        evaluator.progress(STAGE, index + 1, total)
        try:
            context = reassigned_window(evaluator.accessed, window, keep, first)
            result = long.loss(f"kv window {window} keep {keep} from {first} reassigned", context)
        except DoesNotApplyError as refusal:
            reason = str(refusal)
            break
        table.append(_row(window, keep, first, result, full, REASSIGNED))
    evaluator.progress(STAGE, total, total)
    evaluator.seconds = long.seconds
    return KvCache(
        sequences=len(ids),
        tokens=ids.shape[1],
        table=table,
        keep=fewest(table, windows[-1]),
        tolerance_nats=TOLERANCE_NATS,
        reassigned_reason=reason,
        note=_note(evaluator.accessed, ids.shape[1]),
    )


def _note(accessed: AccessedModel, tokens: int) -> str | None:
    """What the reader must know of the lengths and of what is no attention."""
    notes, most = [HYBRID] if accessed.hybrid else [], accessed.max_positions
    notes += [
        f"No window of {window}: it needs sequences of {TIMES_WINDOW * window} tokens, these have {tokens}."
        for window in WINDOWS
        if TIMES_WINDOW * window > tokens
    ]
    if most is not None and tokens > most:
        notes.append(
            f"{tokens:,} tokens are beyond the model's {most:,} positions: full attention and true positions go there, "
            "reassigned ones do not."
        )
    elif tokens == most and not rotates(accessed):
        notes.append(f"Sequences end with the model's {most:,} positions: it has no others.")
    return " ".join(notes) or None


def _row(
    window: int | None, keep: int | None, first: int, result: Evaluation, full: Evaluation, positions: str = TRUE
) -> KeptSinks:
    return KeptSinks(
        window=window,
        keep=keep,
        first=first,
        positions=positions,
        perplexity=result.perplexity,
        loss_difference_nats=result.cost(full),
    )
