"""The record of `spikesink verify`: what was checked of a model, how far it was off per layer, what is not known."""

from typing import ClassVar

from spikesink.records.base import Frozen, Provenance, Record, Timing


class Check(Frozen):
    """One check over all layers; differences are the largest over tokens of ||ours - theirs|| / ||theirs||."""

    name: str
    what: str
    tokens: int
    """Length of the sequences that it ran on."""
    limit: float
    by_layer: list[float | None]
    """By layer_index; None where the check does not concern a layer. Empty for a check of the model as a whole."""
    largest: float | None
    layer_index: int | None
    """Where the largest difference is."""
    holds: bool | None
    """None where it could not be checked."""
    reason: str | None = None
    """Why it could not be checked, or what else there is to know."""


class VerificationRecord(Record):
    """Of one model, in one dtype on one device."""

    file: ClassVar[str] = "verification.json"
    arrays_file: ClassVar[str] = "verification.safetensors"
    command: ClassVar[str] = "spikesink verify"

    kind: str = "verification"
    verified: bool
    """Every check that could run holds."""
    checks: list[Check]
    keys_seen: list[int | None]
    """By layer_index: the most keys that one query saw in the longest check; None where a layer does not attend."""
    range_share: float
    """Largest residual magnitude as a share of the largest number of the dtype: 1 would be the overflow."""
    not_guaranteed: list[str]
    provenance: Provenance
    timing: Timing
