"""The smallest set of measures with which int8 costs no more than a budget, every set run as it would be deployed."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import numpy as np
from torch import Tensor

from spikesink.access.linears import LinearSite, find_linears
from spikesink.analyse.evaluation import Evaluation, Evaluator
from spikesink.analyse.remedies import stored_largest
from spikesink.intervene.fold import smoothed
from spikesink.intervene.prefix import prefixed, spared_prefix
from spikesink.intervene.quantise import Scheme, quantised_inputs, quantised_weights
from spikesink.records.deployment import (
    IGNORED,
    KEPT,
    PER_TOKEN,
    PREFIX,
    SMOOTHING,
    Budget,
    MeasureSet,
    Quantisation,
    Remedies,
)

DEPLOYED = "int8: weights per output channel, what enters linear maps with one dynamic scale per tensor"


def within_budget(
    evaluator: Evaluator,
    quantised: Quantisation,
    nats: float | None,
    remedies: Remedies,
    arrays: dict[str, np.ndarray],
) -> Budget | None:
    """Sets of measures, the smallest first, until the upper end of a set's cost is at most `nats`.

    All sets of a size are run. Of those within, one without kept spike tokens, which servers lack, goes first, then the
    one that ignores the fewest linear maps, then the one that costs least; of the blocks that it ignores only the worst
    stay, as many as it needs. Smoothing and a prefix are among the measures where they were measured as remedies
    (`arrays` are theirs). None where no budget is given.
    """
    if nats is None:
        return None
    linears = find_linears(evaluator.accessed)
    if quantised.worst_kind is None or not linears:
        return Budget(applicable=False, reason="the model has no single linear maps", nats=nats, deployed=DEPLOYED)
    rows = sorted(quantised.blocks, key=lambda row: -row.loss_difference_nats.value)
    blocks = [block for row in rows if row.loss_difference_nats.low > 0 for block in row.blocks or []]
    baseline = evaluator.baseline_loss()
    search = _Search(
        evaluator, linears, quantised.worst_kind, blocks, baseline, evaluator.spike_tokens(), nats,
        _folds(evaluator, remedies, arrays), tuple(remedies.prefix_ids),
    )  # fmt: skip
    tried = [search.run((), 0)]
    within = [made for made in tried if made.within]
    measures = search.measures()
    for size in range(1, len(measures) + 1):
        if not within:
            # Behind a prefix, spike tokens are the prefix, which is kept.
            sets = [names for names in combinations(measures, size) if not {PREFIX, KEPT} <= set(names)]
            made = []
            for names in sets:
                evaluator.progress(f"sets of {size}", len(made), len(sets))
                made.append(search.run(names, len(blocks)))
            evaluator.progress(f"sets of {size}", len(sets), len(sets))
            tried += made
            within = [each for each in made if each.within]
    within.sort(key=lambda made: (KEPT in made.measures, len(made.ignored), made.loss_difference_nats.value))
    if within and within[0].ignored:
        fewer = search.fewest(within[0])
        tried += fewer
        within = sorted((made for made in [*fewer, within[0]] if made.within), key=lambda made: len(made.blocks))
    return Budget(nats=nats, deployed=DEPLOYED, tried=tried, chosen=within[0] if within else None)


Folds = dict[str, Callable[[], AbstractContextManager]]


def _folds(evaluator: Evaluator, remedies: Remedies, arrays: dict[str, np.ndarray]) -> Folds:
    """Smoothing and the prefix, where they were measured."""
    made: Folds = {}
    if any(row.remedy == SMOOTHING for row in remedies.rows):
        made[SMOOTHING] = partial(smoothed, evaluator.accessed, stored_largest(arrays))
    if remedies.prefix_ids:
        made[PREFIX] = partial(prefixed, evaluator.accessed, remedies.prefix_ids, evaluator.ids)
    return made


@dataclass(frozen=True)
class _Search:
    evaluator: Evaluator
    linears: list[LinearSite]
    kind: str
    blocks: list[int]
    """Those whose input of this kind does damage alone, the worst first."""
    baseline: Evaluation
    spikes: Tensor | None
    nats: float
    folds: Folds = field(default_factory=dict)
    prefix: tuple[int, ...] = ()

    def measures(self) -> list[str]:
        """Those that apply, the easiest to serve first."""
        ignorable = any(self._is_ignored(site, self.blocks) for site in self.linears)
        return [PER_TOKEN, *self.folds, *([IGNORED] if ignorable else []), *([KEPT] if self.spikes is not None else [])]

    def run(self, measures: tuple[str, ...], ignored: int) -> MeasureSet:
        """The model as it is served with these measures; ignored: how many of the worst blocks."""
        blocks = self.blocks[:ignored] if IGNORED in measures else []
        sites = [site for site in self.linears if not self._is_ignored(site, blocks)]
        spared = self.spikes if KEPT in measures else None
        if PREFIX in measures:
            spared = spared_prefix(self.evaluator.ids.shape, self.prefix)
        scheme = Scheme(granularity="token" if PER_TOKEN in measures else "tensor", spared_tokens=spared)
        result = self.evaluator.loss(
            f"budget/{' + '.join(measures)} {blocks}",
            *(fold() for name, fold in self.folds.items() if name in measures),
            quantised_weights(sites, 8),
            quantised_inputs(self.evaluator.accessed, sites, scheme),
        )
        cost = result.cost(self.baseline)
        return MeasureSet(
            measures=list(measures),
            ignored=[site.name for site in self.linears if self._is_ignored(site, blocks)],
            blocks=blocks,
            perplexity=result.perplexity,
            loss_difference_nats=cost,
            within=cost.high <= self.nats,
        )

    def fewest(self, made: MeasureSet) -> list[MeasureSet]:
        """The same measures with fewer ignored blocks, halving what is between too few and enough."""
        tried, few, enough = [], 0, len(made.blocks)
        while enough - few > 1:
            middle = (few + enough) // 2
            tried.append(self.run(tuple(made.measures), middle))
            few, enough = (few, middle) if tried[-1].within else (middle, enough)
        return tried

    def _is_ignored(self, site: LinearSite, blocks: list[int]) -> bool:
        return site.kind == self.kind and site.block in blocks
