"""The paper as a check: figures that were published of known models, set beside those of a survey."""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

from spikesink.records.survey import PaperLine, SurveyRow
from spikesink.train.plain_yaml import read_yaml

SHARE_WITHIN = 0.005
"""Vocabulary shares agree within half a percentage point: the paper counts above a threshold that it does not give."""
TABLES = {"sun2026": "Sun et al. 2026", "sun2024": "Sun et al. 2024"}


@cache
def known() -> list[dict[str, Any]]:
    """The published figures, one entry a model."""
    text = (resources.files("spikesink.survey") / "paper.yaml").read_text(encoding="utf-8")
    return read_yaml(text, "paper.yaml")


def compared(rows: Sequence[SurveyRow]) -> list[PaperLine]:
    """Every published figure of the models among these rows beside ours, of each the first condition."""
    lines: dict[tuple[str, str], PaperLine] = {}
    for row in rows:
        if row.status != "finished" or row.blocks is None:
            continue
        config = [row.family, row.blocks // 2, row.d_model, row.vocab_size]
        for published in known():
            if published["config"] == config:
                for line in _lines(row, published):
                    lines.setdefault((row.label, line.what), line)
    return list(lines.values())


def _lines(row: SurveyRow, published: dict[str, Any]) -> Iterator[PaperLine]:
    def line(what: str, paper: str, ours: str, agreed: bool, source: str) -> PaperLine:
        verdict = "agreed" if agreed else "differs"
        return PaperLine(
            model=row.label, of=published["name"], what=what, paper=paper, ours=ours, verdict=verdict, source=source
        )

    for name, what in (("step_up", "step-up blocks"), ("step_down", "step-down blocks")):
        ours = sorted(getattr(row, f"{name}_blocks"))
        yield line(
            what, _listed(published[name]), _listed(ours), ours == published[name], f"{TABLES['sun2026']}, table 1"
        )
    if row.spike_vocabulary is not None:
        # The table's count is of the rows of the embedding, as ours is.
        paper, ours = published["vocabulary"], row.spike_vocabulary
        size = row.vocab_size or 1
        agreed = abs(paper - ours) / size <= SHARE_WITHIN
        shown = [f"{count:,} of {size:,} ({count / size:.2%})" for count in (paper, ours)]
        yield line("vocabulary that spikes first", shown[0], shown[1], agreed, f"{TABLES['sun2026']}, table 2")
    if "channels" in published:
        channels = published["channels"]
        agreed = set(channels) <= set(row.spike_channels)
        source = TABLES[published["channels_source"]]
        yield line("spike channels", _listed(channels), _listed(row.spike_channels), agreed, source)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
