"""What int8 costs behind a prefix, and with smoothing or rotation in the weights."""

from spikesink.records.advice import unmeasured
from spikesink.records.interventions import Interventions
from spikesink.report.document import Part, Table
from spikesink.report.format import listed, number
from spikesink.report.interventions import ANOTHER_PROCESSOR, cost_text


def remedies_part(record: Interventions) -> Part:
    """Remedies as they are deployed, with what a prefix does to the text's own spikes."""
    section = record.remedies
    rows = [
        [row.remedy or "none", row.scales, number(row.perplexity.value), cost_text(row.loss_difference_nats)]
        for row in section.rows
    ]
    notes = ["What enters every linear map in int8, one scale a tensor; the weights are not rounded."]
    if section.prefix_ids and section.prefix_alone_nats is not None:
        ids = " ".join(map(str, section.prefix_ids))
        notes.append(
            f"Behind the prefix {ids} a sequence has {section.spike_tokens_behind_prefix:.2g} spike tokens, "
            f"{section.spike_tokens:.2g} without; the prefix alone: {cost_text(section.prefix_alone_nats)} nats."
        )
    notes += [*unmeasured(section.missing), ANOTHER_PROCESSOR]
    if section.skipped:
        notes.append(f"Left out: {listed(section.skipped, 12)}.")
    table = Table("Int8 with remedies as deployed", ("remedy", "scales", "perplexity", "cost in nats"), rows, words=2)
    return Part(
        "remedies",
        "Remedies as they are deployed",
        "A prefix takes the spikes out of the text, smoothing divides them, a rotation spreads them.",
        tables=[table],
        note=" ".join(notes),
    )
