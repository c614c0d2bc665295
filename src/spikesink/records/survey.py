"""The records of a survey: a row for every (model, revision, text, condition), and what moved between two surveys.

Ratios and shares are fractions; blocks are 1-based, channels and positions 0-based; intervals are over sequences.
"""

from typing import ClassVar, Literal

from pydantic import Field

from spikesink.records.base import Frozen, JsonRecord, Provenance, Timing
from spikesink.records.intervals import Estimate

Status = Literal["finished", "refused", "failed"]
"""refused: the model or the text cannot be measured, which is a result; failed: anything else, after a second try."""


class SurveyRow(Frozen):
    """One cell: which model was measured how, and what was found; figures are None where nothing was."""

    model: str
    revision: str | None = None
    text: str
    bos: str = "auto"
    dtype: str = "auto"
    """As asked for."""
    seq_len: int | None = None
    """None where token ids were given as they are."""
    chat_template: bool = False

    status: Status
    error: str | None = None
    identity: str
    """Hash of what decides the result: weights, text, conditions and options."""
    folder: str | None = None
    """Of the cell's own records, below the survey's folder."""
    seconds: float = 0.0

    family: str | None = None
    """transformers' model type."""
    arrangement: str | None = None
    """Where norms stand: pre-norm, sandwich, output norm, post-norm, parallel; with QK norm where there is one."""
    parameters: int | None = None
    blocks: int | None = None
    d_model: int | None = None
    vocab_size: int | None = None
    commit: str | None = None
    computed_in: str | None = None
    quantised_from: str | None = None
    """What the weights went through before, e.g. Q4_1."""
    sequences: int | None = None
    bos_added: bool | None = None
    step: int | None = None
    """Of training, where the revision's name says it."""
    tokens_trained: int | None = None

    perplexity: Estimate | None = None
    spike: float | None = None
    """Largest magnitude in any residual after a block."""
    sequence_spike: Estimate | None = None
    """Mean over sequences of each one's largest magnitude."""
    max_over_median: float | None = None
    has_spikes: bool | None = None
    spike_block: int | None = None
    spike_channels: list[int] = Field(default_factory=list)
    step_up_blocks: list[int] = Field(default_factory=list)
    step_down_blocks: list[int] = Field(default_factory=list)
    life_cycle: list[float] = Field(default_factory=list)
    """Largest magnitude after each block that has a residual of its own, to four digits."""
    sink_ratio: Estimate | None = None
    has_sinks: bool | None = None
    sink_heads: int | None = None
    heads: int | None = None
    first_key_importance: float | None = None
    sink_positions: list[int] = Field(default_factory=list)
    """Where sink heads put their attention: positions that one of them makes a sink on average."""
    spike_vocabulary: int | None = None
    """Vocabulary items that spike alone at position 0, by Sun et al. 2024; of the measure `trigger`."""
    zero_cost_nats: Estimate | None = None
    """Loss added by setting spikes to zero."""
    freeze_cost_nats: Estimate | None = None
    """Loss added by one constant vector in place of every spike token's state."""
    int8_cost_nats: Estimate | None = None
    """Loss added by int8 at the input of every linear map, a scale per tensor; of the measure `rounding`."""
    fp8_cost_nats: Estimate | None = None
    """The same with fp8 e4m3."""
    rounding_missing: str | None = None
    """Why these two are not there although they were asked for."""

    @property
    def key(self) -> tuple[object, ...]:
        """What names the cell: a row with the same key is the same question asked again."""
        return (self.model, self.revision, self.text, self.bos, self.dtype, self.seq_len, self.chat_template)

    @property
    def label(self) -> str:
        """The model with its revision."""
        return self.model if self.revision is None else f"{self.model} @ {self.revision}"

    @property
    def condition(self) -> str:
        """Text and conditions in a few words."""
        length = [] if self.seq_len is None else [f"{self.seq_len} tokens"]
        bos = [] if self.bos == "as given" else [f"BOS {self.bos}"]
        chat = ["chat template"] if self.chat_template else []
        return ", ".join([self.text, *length, *bos, *([] if self.dtype == "auto" else [self.dtype]), *chat])


class ModelRows(JsonRecord):
    """The rows of one (model, revision), which is loaded once for each dtype."""

    kind: Literal["survey_model"] = "survey_model"
    command: ClassVar[str] = "spikesink survey"

    name: str
    attempts: int = 1
    peak_bytes: int | None = None
    """Most memory that the process held at once."""
    rows: list[SurveyRow]


class PaperLine(Frozen):
    """One published figure beside ours."""

    model: str
    """As the survey calls it."""
    of: str
    """The published model whose config it has."""
    what: str
    paper: str
    ours: str
    verdict: Literal["agreed", "differs"]
    source: str


class SurveyRecord(JsonRecord):
    """A whole survey, which the atlas is drawn from and another survey compared with."""

    kind: Literal["survey"] = "survey"
    main: ClassVar[str | None] = "rows"
    command: ClassVar[str] = "spikesink survey"
    file: ClassVar[str] = "survey.json"

    rows: list[SurveyRow]
    paper: list[PaperLine] = Field(default_factory=list)
    provenance: Provenance
    timing: Timing

    def finished(self) -> list[SurveyRow]:
        return [row for row in self.rows if row.status == "finished"]


class Move(Frozen):
    """One figure of one cell that is another in the second survey."""

    model: str
    condition: str
    what: str
    before: str
    after: str


BOUNDED = ("perplexity", "sequence_spike", "sink_ratio", "zero_cost_nats", "freeze_cost_nats", "int8_cost_nats",
           "fp8_cost_nats")  # fmt: skip
"""Figures with an interval."""
DISCRETE = ("status", "has_spikes", "has_sinks", "spike_channels", "step_up_blocks", "step_down_blocks",
            "sink_positions", "arrangement")  # fmt: skip
"""Findings that are the same or not."""


def moves(one: SurveyRecord, other: SurveyRecord) -> list[Move]:
    """What moved from one survey to the other: of figures with an interval, where neither value lies in the other's."""
    before, after = ({row.key: row for row in record.rows} for record in (one, other))
    changes = []
    for key in dict.fromkeys([*before, *after]):
        left, right = before.get(key), after.get(key)
        row = left or right
        assert row is not None

        def moved(what: str, old: object, new: object, row: SurveyRow = row) -> Move:
            return Move(model=row.label, condition=row.condition, what=what, before=str(old), after=str(new))

        if left is None or right is None:
            there = ["there" if side else "missing" for side in (left, right)]
            changes.append(moved("row", there[0], there[1]))
            continue
        for name in BOUNDED:
            old, new = getattr(left, name), getattr(right, name)
            if old is not None and new is not None and not (_within(old, new) or _within(new, old)):
                changes.append(moved(name, _shown(old), _shown(new)))
        for name in DISCRETE:
            old, new = getattr(left, name), getattr(right, name)
            # A row without figures says nothing of channels and blocks.
            both = left.status == right.status == "finished" or name == "status"
            if both and old != new:
                changes.append(moved(name, old, new))
    return changes


def _within(value: Estimate, bounds: Estimate) -> bool:
    return bounds.low <= value.value <= bounds.high


def _shown(figure: Estimate) -> str:
    return f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]"
