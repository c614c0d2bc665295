"""Which tokens are sink tokens: measured once for a scan, shared by the measures that need them."""

import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from spikesink.analyse.passes import Progress, Scan
from spikesink.errors import DoesNotApplyError
from spikesink.measure.cooccurrence import SinkTokenMeasure

HEADS_SHARE_MIN = 0.01
"""A sink token is one in at least this share of all heads, so that one odd head does not make one."""

_known: "weakref.WeakKeyDictionary[Scan, SinkTokens]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class SinkTokens:
    """mask and heads (sequence, token): sink tokens, and in how many heads each one's importance is that of a sink."""

    mask: Tensor
    heads: Tensor
    importance_min: float
    heads_min: int


def sink_tokens(scanned: Scan, progress: Progress) -> SinkTokens:
    """The sink tokens of the scanned text. Raises DoesNotApplyError where there are none."""
    if scanned not in _known:
        importance_min = scanned.sinks.importance_min
        measure = SinkTokenMeasure((len(scanned.ids), scanned.ids.shape[1]), importance_min)
        scanned.replay([measure], "sink tokens", progress)
        heads_min = max(1, math.ceil(HEADS_SHARE_MIN * measure.head_count))
        _known[scanned] = SinkTokens(measure.heads >= heads_min, measure.heads, importance_min, heads_min)
    found = _known[scanned]
    if not bool(found.mask.any()):
        raise DoesNotApplyError("No token of this text is an attention sink")
    return found


def sequences_with_sinks(found: SinkTokens, most: int) -> Tensor:
    """Indices of the first sequences that have a sink token, at most so many."""
    return torch.nonzero(found.mask.any(1))[:, 0][:most]
