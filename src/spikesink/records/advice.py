"""What was measured of a model's deployment as advice, a sentence each."""

from spikesink.positions import placed
from spikesink.records.deployment import (
    FORMAT_NATS,
    KEPT,
    NO_FORMATS,
    NO_REMEDIES,
    PER_TOKEN,
    PREFIX,
    TRUE,
    Budget,
    Damage,
    FormatDamage,
    Formats,
    KvCache,
    MeasureSet,
    Quantisation,
    Remedies,
    is_damage,
)
from spikesink.records.intervals import Estimate

SERVED = {"inputs": "What enters linear maps costs", "weights": "Weights cost", "kv": "The KV cache costs"}
SERVED_PARTLY = {
    "inputs": "What enters the linear maps that were measured costs",
    "weights": "Weights of the linear maps that were measured cost",
}
"""The same where some linear maps could not be measured."""
LEFT_OUT_SHARE = 0.2
"""Share of what a format costs that a block does alone, from which it is named."""


def advice(
    has_spikes: bool,
    quantised: Quantisation,
    cache: KvCache,
    budget: Budget | None = None,
    deployed: Remedies = NO_REMEDIES,
    formats: Formats = NO_FORMATS,
) -> list[str]:
    """What was measured of a budget, int8, remedies, formats and the KV cache as advice, a sentence each."""
    spikes = [] if has_spikes else ["The model has no spikes."]
    sentences = [
        *_within(budget),
        *spikes,
        *_int8(quantised),
        *_deployed(deployed),
        *_served(formats, budget),
        *unmeasured(missing_maps(quantised, deployed, formats)),
        *_keep(cache),
    ]
    return sentences or ["Nothing was measured that says what to do."]


def missing_maps(quantised: Quantisation, deployed: Remedies, formats: Formats) -> list[str]:
    """Kinds of linear maps that these could not measure, each with the reason."""
    return list(dict.fromkeys([*quantised.skipped, *deployed.missing, *formats.missing]))


def unmeasured(missing: list[str]) -> list[str]:
    """A sentence for each reason why kinds of linear maps were not measured; none where all were."""
    kinds: dict[str, list[str]] = {}
    for kind, _, reason in (text.partition(": ") for text in missing):
        kinds.setdefault(reason, []).append(kind)
    return [
        f"What rounding does to {' and '.join(names)} was not measured: {reason}." for reason, names in kinds.items()
    ]


def _within(budget: Budget | None) -> list[str]:
    if budget is None:
        return []
    text = f"Within {budget.nats:g} nats"
    if not budget.applicable:
        return [f"{text}: not measured, since {budget.reason}."]
    plain = budget.tried[0]
    text += f" ({budget.deployed}; {_costs(plain)} without measures): "
    if budget.chosen is None:
        best = min(budget.tried, key=lambda made: made.loss_difference_nats.high)
        return [f"{text}no set of measures; the best, {_measures(best)}, costs {_costs(best)}."]
    if not budget.chosen.measures:
        return [f"{text}nothing need be done."]
    ignored = budget.chosen.ignored
    names = f" Ignore {', '.join(ignored)}." if ignored else ""
    return [f"{text}{_measures(budget.chosen)}, {_costs(budget.chosen)}.{names}"]


def _measures(made: MeasureSet) -> str:
    return " and ".join(made.measures) or "no measure"


def _costs(made: MeasureSet | Damage) -> str:
    cost = made.loss_difference_nats
    decimals = 3 if max(abs(cost.low), abs(cost.high)) >= 0.005 else 5
    value, low, high = (f"{each:+z.{decimals}f}" for each in (cost.value, cost.low, cost.high))
    return f"{value} [{low}, {high}]"


def _int8(quantised: Quantisation) -> list[str]:
    if not quantised.applicable or quantised.baseline is None or quantised.worst_kind is None:
        return []
    kind = quantised.worst_kind
    entering = f"what enters {'the linear maps that were measured' if quantised.skipped else 'linear maps'}"
    rows = quantised.int8()
    broken = [each for each in dict.fromkeys((kind, "kv")) if _is_broken(rows.get((each, "tensor")))]
    if not broken:
        where = "the KV cache" if kind == "kv" else f"{entering}, or to the KV cache"
        return [f"Int8 with one scale per tensor does no notable damage to {where}."]
    sentences = [f"Int8 with one scale per tensor does no notable damage to {entering}."]
    if kind in broken:
        sentences = _broken(quantised, quantised.baseline.value, rows[kind, "tensor"])
    if "kv" in broken and kind != "kv":
        ways = ", ".join(f"{_costs(rows['kv', way])} nats with one scale per {way}" for way in ("tensor", "token"))
        sentences.append(f"The KV cache in int8 costs {ways}.")
    return sentences


def _is_broken(row: Damage | None) -> bool:
    return row is not None and is_damage(row.loss_difference_nats)


def _broken(quantised: Quantisation, base: float, broken: Damage) -> list[str]:
    """What int8 breaks most, in which blocks, what spikes have to do with it, and what mends it."""
    what = "keys and values" if broken.kind == "kv" else f"the input of {broken.kind}"
    text = f"Int8 with one scale per tensor breaks {what}: perplexity {base:.1f} to {broken.perplexity.value:.1f}"
    if quantised.worst_blocks:
        text += f", most of it in block{'s' if len(quantised.worst_blocks) > 1 else ''} "
        text += ", ".join(map(placed, sorted(quantised.worst_blocks)))
    if quantised.spike_share is not None:
        text += f"; {quantised.spike_share.value:.0%} of the damage goes when spike tokens are kept in high precision"
    options = sorted(quantised.remedies, key=lambda row: row.perplexity.value)
    return [text + ".", f"Remedies, the best first: {', '.join(map(_option, options))}."]


def _deployed(section: Remedies) -> list[str]:
    """Static scales, which break first, with each remedy."""
    rows = _static(section)
    if None not in rows or not is_damage(rows[None]):
        return []
    costs = sorted((cost.value, name) for name, cost in rows.items() if name)
    ways = "; with " + ", ".join(f"{name} {cost:+z.2f}" for cost, name in costs) if costs else ""
    maps = "linear map that was measured" if section.missing else "linear map"
    text = f"Every {maps} in int8 with one static scale costs {rows[None].value:+.2f} nats{ways}."
    ids = " ".join(map(str, advised_prefix(section)))
    return [text, *([f"Prefix: token {ids} before every sequence, its keys and values unrounded."] if ids else [])]


def _static(section: Remedies) -> dict[str | None, Estimate]:
    return {row.remedy: row.loss_difference_nats for row in section.rows if row.scales == "static"}


def advised_prefix(section: Remedies, budget: Budget | None = None) -> list[int]:
    """Token ids to put before every sequence, none where that mends nothing.

    They are advised where int8 with static scales does damage that they lessen, or where the budget is met with them.
    """
    rows = _static(section)
    mends = PREFIX in rows and is_damage(rows[None]) and rows[PREFIX].value < rows[None].value
    chosen = budget is not None and budget.chosen is not None and PREFIX in budget.chosen.measures
    return section.prefix_ids if mends or chosen else []


def formats_within(section: Formats, budget: Budget | None) -> dict[str, list[str]]:
    """By kind, the formats of which the upper end of the cost is at most what it may be, the cheapest first."""
    nats = _allowed(budget)
    rows = sorted(section.rows, key=lambda row: row.loss_difference_nats.value)
    kinds = dict.fromkeys(row.kind for row in section.rows)
    return {
        kind: [row.name for row in rows if row.kind == kind and row.loss_difference_nats.high <= nats] for kind in kinds
    }


def _allowed(budget: Budget | None) -> float:
    """Nats that a format may cost."""
    return FORMAT_NATS if budget is None else budget.nats


def _served(section: Formats, budget: Budget | None) -> list[str]:
    """For inputs, weights and caches, the formats that the model can be served in and those that it cannot."""
    sentences = []
    for kind, within in formats_within(section, budget).items():
        rows = {row.name: row for row in section.rows if row.kind == kind}
        costs = {**SERVED, **(SERVED_PARTLY if section.missing else {})}[kind]
        text = f"{costs} at most {_allowed(budget):g} nats (upper end) in "
        text += ", ".join(f"{name} ({rows[name].loss_difference_nats.value:+z.3f})" for name in within) or "no format"
        over = sorted(rows.keys() - within, key=lambda name: rows[name].loss_difference_nats.value)
        more = "; more in " if over else ""
        sentences.append(f"{text}{more}{', '.join(_over(rows[name]) for name in over)}.")
    return sentences


def _over(row: FormatDamage) -> str:
    """A format that costs too much, and the blocks to leave out of it first, where few do much of the damage."""
    cost = row.loss_difference_nats.value
    alone = {placed(each.block): each.loss_difference_nats.value for each in row.worst_blocks}
    worst = ", ".join(f"{block} {nats:+z.3f}" for block, nats in alone.items() if nats >= LEFT_OUT_SHARE * cost)
    return f"{row.name} ({cost:+z.3f}{f'; leave out first: {worst}' if worst else ''})"


def _option(row: Damage) -> str:
    what = {
        "worst blocks kept": "keep these blocks in high precision",
        "per token": PER_TOKEN,
        KEPT: "keep spike tokens in high precision",
        "spike tokens frozen": "spike tokens from one constant",
    }.get(row.remedy or "", f"{row.remedy}")
    return f"{what} ({row.perplexity.value:.1f})"


def _keep(cache: KvCache) -> list[str]:
    if not cache.applicable or cache.keep is None:
        return []
    window = max(row.window for row in cache.table if row.window)
    rows = [row for row in cache.table if row.window == window and row.first == 0 and row.positions == TRUE]
    by_keep = {row.keep: row.perplexity.value for row in rows}
    if cache.keep == 0:
        return [f"KV cache: no first token need be kept (window {window}: perplexity {by_keep[0]:.1f} with none)."]
    text = f"KV cache: keep {cache.keep} first token{'' if cache.keep == 1 else 's'}"
    return [f"{text} (window {window}: perplexity {by_keep[cache.keep]:.1f}, with none kept {by_keep[0]:.1f})."]
