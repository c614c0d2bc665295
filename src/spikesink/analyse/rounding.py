"""What int8 and fp8 cost in their plainest form: what enters every linear map is rounded with one scale per tensor."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikesink import bootstrap
from spikesink.access import AccessedModel
from spikesink.access.linears import editing_inputs, find_linears
from spikesink.analyse.evaluation import evaluate
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.quantise import Scheme, quantised_inputs
from spikesink.observer import Progress, no_progress
from spikesink.positions import placed
from spikesink.records.intervals import Estimate

STAGE = "int8 and fp8"
FP8_LARGEST = float(torch.finfo(torch.float8_e4m3fn).max)


class RoundingCosts(NamedTuple):
    """Nats by which the loss rises, paired over sequences."""

    int8: Estimate
    fp8: Estimate
    """e4m3."""


def rounding_costs(
    accessed: AccessedModel,
    ids: Tensor,
    plain: np.ndarray | list[float],
    *,
    progress: Progress = no_progress,
) -> RoundingCosts:
    """Two passes over ids (sequence, token), scales taken from each batch; plain: nats of each sequence as it is.

    Raises DoesNotApplyError where a block has maps that cannot be reached, since their cost would be missing.
    """
    sites = find_linears(accessed)
    reached = {site.block for site in sites}
    without = [block for block in range(1, accessed.n_blocks + 1) if block not in reached]
    if without:
        raise DoesNotApplyError(
            f"block {placed(without[0])} has no linear maps of its own whose inputs could be rounded (fused experts, "
            f"or a mixer); {len(without)} of {accessed.n_blocks} blocks are so"
        )
    contexts = {
        "int8": quantised_inputs(accessed, sites, Scheme()),
        "fp8": editing_inputs(sites, lambda _, entering: fake_fp8(entering)),
    }
    costs = {}
    for index, (name, context) in enumerate(contexts.items()):
        progress(STAGE, index, len(contexts))
        losses = evaluate(accessed, ids, context, loss_only=True).losses
        costs[name] = bootstrap.estimate(bootstrap.difference, losses, plain)
    progress(STAGE, len(contexts), len(contexts))
    return RoundingCosts(**costs)


def fake_fp8(values: Tensor) -> Tensor:
    """Values rounded to float8 e4m3 under one scale for the tensor; the dtype stays."""
    scale = (values.abs().max() / FP8_LARGEST).clamp_min(torch.finfo(values.dtype).tiny)
    return (values / scale).to(torch.float8_e4m3fn).to(values.dtype) * scale
