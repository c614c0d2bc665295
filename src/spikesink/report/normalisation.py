"""What normalisation makes of spike tokens: near-constant, sparse vectors. Figure 5; eq. 23-25."""

import altair as alt

from spikesink.records import Anatomy
from spikesink.records.sections import normalisation as sections
from spikesink.report.document import Merit, Part
from spikesink.report.drawing import BLUE, HEIGHT, ORANGE, Figure, Rows, block_axis, lines, step_marks, table
from spikesink.report.format import counted, number, percent

KINDS = ("spike tokens", "other tokens")


def normalisation_part(record: Anatomy, section: sections.Normalisation) -> Part:
    """What the normalisation's section of the record says."""
    implicit = section.implicit
    at = _at(section)
    note = f"of a spike token's normed state; others {percent(implicit.explained_other)}"
    if implicit.distinct_spike_tokens == 1:
        note += "; all spike tokens are the same token (a BOS, say), of which a constant says nothing"
    merits = [Merit("explained by the mean of other prompts", implicit.explained_spike, "%", note=note)]
    if implicit.explained_spike_before is not None and implicit.before_block is not None:
        note = f"the same tokens before the step-up, after block {record.placed(implicit.before_block)}: they are "
        note += "mostly first tokens, alike by their place"
        merits.append(Merit("explained before they spike", implicit.explained_spike_before, "%", note=note))
    if implicit.explained_spike_without_channels is not None:
        note = "of what is left of a spike token's normed state without them"
        rest = implicit.explained_spike_without_channels
        merits.append(Merit("explained without the spike channels", rest, "%", note=note))
    if at is not None:
        where = f"after block {record.placed(at.block)}"
        merits += [
            Merit("energy in the spike channels", at.spike.energy_share, "%",
                  note=f"{where}; others {percent(at.other.energy_share)}"),
            Merit("cosine between prompts", at.spike.cosine_across,
                  note=f"{where}; others {number(at.other.cosine_across)}"),
        ]  # fmt: skip
    return Part(
        "normalisation",
        "What normalisation makes of it",
        "How sparse a spike token is behind the norm, and how far it is the same vector in "
        "every text, as an implicit parameter would be.",
        merits=merits,
        figures=normalisation_figures(record, section),
    )


def _at(section: sections.Normalisation) -> sections.NormalisationBlock | None:
    """The block that is spoken of: where the implicit parameter was read, else the last."""
    implicit = next((block for block in section.blocks if block.block == section.implicit.block), None)
    return implicit or (section.blocks[-1] if section.blocks else None)


def normalisation_figures(record: Anatomy, section: sections.Normalisation) -> list[Figure]:
    """The charts of the section."""
    at = _at(section)
    if at is None:
        return []
    where = f"after block {record.placed(at.block)}"
    cosine = _figure(
        record, section, "norm_cosine", "cosine_across", "cosine between prompts",
        "Are spike tokens the same vector in every prompt?",
        f"Mean cosine between normed states of different prompts; {where}: spike tokens "
        f"{number(at.spike.cosine_across)}, others {number(at.other.cosine_across)}.",
    )  # fmt: skip
    energy = _figure(
        record, section, "norm_energy", "energy_share", "share of energy in the spike channels",
        "How much of their energy sits in the spike channels",
        f"Share of ‖h̃‖² in {counted(len(section.spike_channels), 'spike channel')}; {where}: spike tokens "
        f"{percent(at.spike.energy_share)}, others {percent(at.other.energy_share)}.",
    )  # fmt: skip
    persistence = _figure(
        record, section, "norm_persistence", "persistence", "cosine with the block before",
        "Do they persist from block to block?",
        f"Mean cosine of a token's normed state with the same token's after the block before; {where}: spike tokens "
        f"{number(at.spike.persistence)}, others {number(at.other.persistence)}.",
    )  # fmt: skip
    return [cosine, energy, persistence]


def _figure(
    record: Anatomy, section: sections.Normalisation, name: str, field: str, axis: str, title: str, metric: str
) -> Figure:
    rows: Rows = []
    for block in section.blocks:
        for kind, statistics in zip(KINDS, (block.spike, block.other), strict=True):
            value = getattr(statistics, field)
            if value is not None:
                rows.append({"block": block.block, "kind": kind, "value": value, "tokens": statistics.tokens,
                             "prompts": statistics.prompts})  # fmt: skip
    tips = ["block:Q", "kind:N", alt.Tooltip("value:Q", format=".4f"), "tokens:Q", "prompts:Q"]
    marks = step_marks(record.summary.step_up_blocks, record.summary.step_down_blocks)
    y = alt.Y("value:Q", title=axis)
    last = section.blocks[-1]
    return Figure(
        name=name,
        title=title,
        chart=lines("kind", KINDS, block_axis(), y, tips, hues=[ORANGE, BLUE], marks=marks, height=HEIGHT - 60),
        rows=table(rows),
        caption=f"{metric} Residual after each block, seen through the model's {section.norm} without its scale; "
        f"{last.spike.tokens} spike and {last.other.tokens} other tokens.",
        alternative=f"Line chart by block. {metric}",
    )
