"""spikesink: takes apart massive activations ("spikes") and attention sinks in Transformer language models.

`load` gives an accessed model, `scan` measures it, `dissociate` removes spikes and sinks from it; `find` gives what
the context managers of `spikesink.intervene` start from. All are imported when first used, so that reading a record
does not import torch.
"""

from typing import TYPE_CHECKING, Any

from spikesink.shown import Shown

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spikesink.access import AccessedModel, load
    from spikesink.analyse.finding import find
    from spikesink.analyse.interventions import dissociate
    from spikesink.analyse.scan import scan
    from spikesink.records import Anatomy
    from spikesink.records.interventions import Interventions

_LAZY = {
    "AccessedModel": "spikesink.access",
    "Anatomy": "spikesink.records",
    "Interventions": "spikesink.records.interventions",
    "dissociate": "spikesink.analyse.interventions",
    "find": "spikesink.analyse.finding",
    "load": "spikesink.access",
    "scan": "spikesink.analyse.scan",
}

_PARTS = (
    "access", "analyse", "data", "graft", "intervene", "measure", "measures", "records", "report", "study", "train",
    "zoo",
)  # fmt: skip
"""Subpackages and modules that `import spikesink` alone makes reachable; each is imported when first used."""

REGISTERING = {"spikesink_decoder": "spikesink.zoo.decoder"}
"""Model type -> part that registers it with transformers when imported; `load` imports it by name where a config says
so, since what it builds on may not know it."""

__all__ = ["AccessedModel", "Anatomy", "Interventions", "__version__", "dissociate", "find", "load", "scan"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _PARTS:
        return import_module(f"spikesink.{name}")
    raise AttributeError(f"module 'spikesink' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PARTS})


def _html(record: object) -> str | None:
    """What a notebook shows of a record."""
    from spikesink.report.notebook import display

    return display(record)


def _chart(record: object, name: str) -> Any:
    """One chart of a record."""
    from spikesink.report.notebook import chart

    return chart(record, name)


def _brief(record: object) -> str | None:
    """A record on one line."""
    from spikesink.report.build import brief

    return brief(record)


Shown.renderer = staticmethod(_html)
Shown.brief = staticmethod(_brief)
Shown.charts = staticmethod(_chart)
