"""Access to models: loading, verifying, watching and editing any Hugging Face causal LM of the attention registry."""

from spikesink.requirement import TRANSFORMERS, require_transformers

# Before the imports that another version would fail.
require_transformers(TRANSFORMERS, "spikesink")

from spikesink.access.capture import editing, observing, run, watch
from spikesink.access.load import DTYPES, access, load
from spikesink.access.model import AccessedModel
from spikesink.observer import AttentionInputs, AttentionRows, Batch, full_batch

__all__ = [
    "DTYPES",
    "AccessedModel",
    "AttentionInputs",
    "AttentionRows",
    "Batch",
    "access",
    "editing",
    "full_batch",
    "load",
    "observing",
    "run",
    "watch",
]
