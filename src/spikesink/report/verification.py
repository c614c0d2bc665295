"""What `spikesink verify` found: the checks, the largest difference of every layer, and what none of them can say."""

from spikesink.records import Check, VerificationRecord
from spikesink.records.scan import BosPair, BosSide
from spikesink.report.conditions import condition_table, line, name
from spikesink.report.document import Document, Merit, Part, Statement, Table
from spikesink.report.format import NONE, number, percent
from spikesink.report.next_step import next_step

HEADS = {
    "sums": "sums",
    "attention": "attention",
    "maps": "maps",
    "padding right": "pad right",
    "padding left": "pad left",
    "long sums": "long sums",
    "long attention": "long att.",
}
"""Column heads by check."""
FLOAT16_MAX = 65504
MARKS = {True: ("✓", "yes"), False: ("✗", "no"), None: (NONE, "dim")}


def verification_document(record: VerificationRecord) -> Document:
    """Of one model, in one dtype on one device."""
    model = record.provenance.model
    verdict = "verified" if record.verified else "refused"
    return Document(
        kind="verification",
        title=f"{name(model)} {verdict}",
        lead=f"{model.get('dtype')} on {model.get('device')}",
        statements=[Statement("Not guaranteed", "; ".join(record.not_guaranteed) + ".")],
        merits=[_range(record)],
        sections=[Part("checks", "The checks", tables=[_checks(record), _layers(record)])],
        conditions=[(record.file, condition_table(record))],
        condition=line(record),
        next=next_step(record),
    )


def _range(record: VerificationRecord) -> Merit:
    share = record.largest_residual / FLOAT16_MAX
    holds = f"{percent(share)} of what float16 can hold" if share < 1 else "more than float16 can hold"
    return Merit("largest residual", record.largest_residual, note=holds)


def _checks(record: VerificationRecord) -> Table:
    rows = [
        [
            f"{MARKS[check.holds][0]} {check.what}", f"{check.tokens:,}", _difference(check.largest),
            f"{check.limit:.0e}", NONE if check.layer_index is None else f"{check.layer_index}",
        ]
        for check in record.checks
    ]  # fmt: skip
    styles = [MARKS[check.holds][1] for check in record.checks]
    return Table("What was checked", ("check", "tokens", "largest", "limit", "layer"), rows, styles)


def _layers(record: VerificationRecord) -> Table:
    """One row per layer_index, one column per check."""
    shown = [check for check in record.checks if check.by_layer and check.largest is not None]
    rows = [
        [f"{index}", *[_difference(check.by_layer[index]) for check in shown], "no att." if keys is None else f"{keys}"]
        for index, keys in enumerate(record.keys_seen)
    ]
    styles = ["no" if any(_fails(check, index) for check in shown) else "" for index in range(len(rows))]
    tokens = record.provenance.tokens["longest"]
    return Table(
        "Layer by layer",
        ("layer", *[HEADS.get(check.name, check.name) for check in shown], "keys"),
        rows,
        styles,
        note="Differences are relative, by layer_index (0: to the last bit); keys: most keys that one query saw in "
        f"{tokens} tokens.",
    )


def _fails(check: Check, index: int) -> bool:
    wrong = check.by_layer[index]
    return wrong is not None and not wrong <= check.limit


def _difference(value: float | None) -> str:
    return NONE if value is None else "0" if value == 0 else f"{value:.1e}"


def bos_document(record: BosPair) -> Document:
    """Of one model on one text."""
    cost = record.loss_difference_nats
    columns = [_column(side) for side in (record.with_bos, record.without_bos)]
    rows = [[quantity, columns[0][quantity], columns[1][quantity]] for quantity in columns[0]]
    return Document(
        kind="bos_pair",
        title=f"{name(record.provenance.model)} with and without BOS",
        lead="the same text, with BOS in front and without it",
        statements=[Statement("BOS", record.sentence)],
        merits=[Merit("leaving it out", cost.value, "nats", cost.low, cost.high, "of loss, on the same predictions")],
        sections=[Part("bos", "With and without", tables=[Table("Both", ("", "with BOS", "without"), rows)])],
        conditions=[(record.file, condition_table(record))],
        condition=line(record),
        next=next_step(record),
    )


def _column(side: BosSide) -> dict[str, str]:
    return {
        "perplexity": number(side.perplexity),
        "largest magnitude": number(side.spike),
        "over the median": number(side.max_over_median),
        "spikes": "yes" if side.has_spikes else "no",
        "first tokens that spike": percent(side.first_spikes),
        "tokens that spike": percent(side.spike_token_share),
        "sink ratio": percent(side.sink_ratio),
        "sinks": "yes" if side.has_sinks else "no",
        "attention on the first token": percent(side.first_key_importance),
    }
