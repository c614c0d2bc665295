"""Frozen result types, their schema version, and how they are written and read: `anatomy.json` + `arrays.safetensors`.

A record is self-contained: every figure and table can be made again from it without the model. Ratios are fractions;
block numbers are 1-based as in the paper (odd = attention, even = FFN); heads, channels and positions are 0-based.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spikesink.errors import OutputError, RecordError

SCHEMA = 1
RECORD_FILE = "anatomy.json"
ARRAYS_FILE = "arrays.safetensors"


class Frozen(BaseModel):
    """A value that does not change after it was measured; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Section(Frozen):
    """A part of the record that one measure fills; a measure that does not apply says why and fills nothing else."""

    applicable: bool = True
    reason: str | None = None


class NotApplicable(Section):
    """What a measure leaves in the record of a model that it does not apply to."""

    applicable: bool = False


class Peak(Frozen):
    """The largest magnitude of one channel over all tokens, and where it was."""

    channel: int
    value: float
    """Magnitude."""
    sign: int
    sequence: int
    position: int


class BlockCycle(Frozen):
    """One residual block in the life cycle of a spike. Spec 2.1; figure 1 of Sun et al. 2026."""

    block: int
    kind: str
    resid_top3: list[Peak] | None
    """Three distinct channels of the residual after this block; None where a parallel layer has no such residual."""
    out_top3: list[Peak]
    """The same of the block's own write."""
    resid_median: float | None
    """Median magnitude per sequence, averaged."""
    resid_max_over_median: float | None
    share_of_plateau: float | None
    """Signed contribution to the spike channels at spike tokens, as a share of the plateau; see StepRule."""


class StepRule(Frozen):
    """The rule that names step blocks: up to the spike block, a write of at least `share_min` of the plateau; later, of
    at most minus that. Spec 2.1."""

    share_min: float
    plateau: float | None
    """Mean magnitude on the spike channels at the spike block, over the tokens that the shares were measured on."""
    tokens: int
    """Tokens that the contributions were averaged over."""
    applies: bool
    reason: str | None


class Lifecycle(Frozen):
    blocks: list[BlockCycle]
    step_rule: StepRule
    unrolled_sum_holds: bool
    """False in a post-norm model, whose residual is itself normed, so that writes do not add up."""


class SpikeToken(Frozen):
    """A token whose residual holds a spike at the spike block."""

    sequence: int
    position: int
    token_id: int
    text: str
    value: float


class SpikeVerdict(Frozen):
    """Thresholds behind `has_spikes` and what counted under each published criterion."""

    max_over_median_min: float
    share_of_spike_min: float
    sun2024_absolute: float
    sun2024_ratio: float
    massive_count: int
    """Elements of all residuals with |a| > sun2024_absolute and |a| > sun2024_ratio x the median. Sun et al. 2024."""
    massive_blocks: list[int]
    token_count: int
    """Spike tokens found; `spike_tokens` of the summary lists the largest of them."""


class SinkHead(Frozen):
    """One query head. Importance of key k: alpha_k = (1/T) sum over queries of A[t, k]. Eq. 27."""

    block: int
    head: int
    first_key_importance: float
    max_importance: float
    """Largest alpha_k over the first half of the keys, averaged over sequences."""
    sink_rate: float
    """Share of sequences in which the head is a sink head under the chosen metric and epsilon."""
    is_sink: bool


class Sinks(Frozen):
    metric: str
    epsilon: float
    uniform_first_key: float
    """alpha_1 of a head that attends uniformly to what it sees: the mean over queries of 1 / visible keys."""
    uniform_factor_min: float
    """A sink head must also reach this multiple of `uniform_first_key`."""
    sink_rate_min: float
    first_key_importance: float
    """Mean over heads and sequences."""
    virtual_mass: float | None
    """Mean attention mass on virtual keys (learned sinks, key-value bias), None where there are none."""
    heads: list[SinkHead]


class Summary(Frozen):
    """The answer in one place. Spec sections 2 ("Ours, exactly") and 3."""

    perplexity: float
    sink_ratio: float
    """Under the chosen metric."""
    sink_ratio_sun2026: float
    sink_ratio_gu2025: float
    sink1_gu2025: float
    has_sinks: bool
    sink_head_count: int
    head_count: int
    spike: float
    spike_block: int
    spike_channel: int
    has_spikes: bool
    spike_channels: list[int]
    spike_tokens: list[SpikeToken]
    massive_count: int
    max_over_median: float
    step_up_blocks: list[int]
    step_down_blocks: list[int]


class Provenance(Frozen):
    model: dict[str, Any]
    tokens: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]


class Timing(Frozen):
    """Seconds; the only part of a record that differs between two runs of the same command."""

    created: str
    load_s: float
    forward_s: float
    total_s: float


class Anatomy(BaseModel):
    """The record of one model on one set of tokens; further measures add sections under their own names."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, arbitrary_types_allowed=True)

    schema_version: int = Field(default=SCHEMA, alias="schema")
    kind: str = "anatomy"
    summary: Summary
    lifecycle: Lifecycle
    spikes: SpikeVerdict
    sinks: Sinks
    provenance: Provenance
    timing: Timing
    arrays: dict[str, np.ndarray] = Field(default_factory=dict, exclude=True, repr=False)

    def to_json(self) -> str:
        """The record as JSON text; numbers that are not finite are refused, since JSON has none."""
        content = self.model_dump(mode="json", by_alias=True)
        return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, folder: Path, *, force: bool = False) -> Path:
        """Write both files, whole or not at all; returns the folder. Raises OutputError."""
        return save_record(self.to_json(), self.arrays, folder, force=force)

    @classmethod
    def read(cls, folder: Path) -> "Anatomy":
        """Read a record that was written by `save`. Raises RecordError."""
        content, arrays = read_record(folder)
        try:
            return cls.model_validate({**content, "arrays": arrays})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RecordError(
                f"'{folder}' holds no anatomy record of schema {SCHEMA}: {where}: {first['msg']}."
            ) from None


def check_output(folder: Path, *, force: bool) -> None:
    """Refuse early what could not be written at the end: an existing record, a file in the way, no permission."""
    if (folder / RECORD_FILE).exists() and not force:
        raise OutputError(f"'{folder}' already holds a record; pass --force to replace it or another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"The output folder '{folder}' cannot be written: {error.strerror}. Choose another --out."
        ) from error


def save_record(text: str, arrays: dict[str, np.ndarray], folder: Path, *, force: bool) -> Path:
    """Arrays first, the JSON last: a folder with a record file always has the arrays that belong to it."""
    from safetensors.numpy import save

    check_output(folder, force=force)
    try:
        (folder / RECORD_FILE).unlink(missing_ok=True)
        _write_whole(folder / ARRAYS_FILE, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        _write_whole(folder / RECORD_FILE, text.encode())
    except OSError as error:
        raise OutputError(
            f"The record could not be written to '{folder}': {error.strerror}. Nothing half-written is left."
        ) from error
    return folder


def read_record(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """JSON content and arrays of a record folder; raises RecordError for whatever is no record."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / RECORD_FILE
    try:
        content = json.loads(path.read_text())
        arrays = load_file(folder / ARRAYS_FILE)
    except FileNotFoundError as error:
        raise RecordError(
            f"'{folder}' holds no record ({Path(str(error.filename)).name} is missing); make one with "
            "spikesink scan --out."
        ) from None
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise RecordError(f"The record in '{folder}' cannot be read: {error}.") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise RecordError(f"'{path}' has schema {found}; this version reads schema {SCHEMA}.")
    return content, arrays


def _write_whole(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
