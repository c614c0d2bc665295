"""spikesink: takes apart massive activations ("spikes") and attention sinks in Transformer language models.

`load` gives an accessed model, `scan` measures it; both are imported when first used, so that reading a record does
not import torch.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spikesink.access import AccessedModel, load
    from spikesink.analyse.scan import scan
    from spikesink.records import Anatomy

_LAZY = {
    "AccessedModel": "spikesink.access",
    "Anatomy": "spikesink.records",
    "load": "spikesink.access",
    "scan": "spikesink.analyse.scan",
}

__all__ = ["AccessedModel", "Anatomy", "__version__", "load", "scan"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'spikesink' has no attribute '{name}'")
