"""The earlier place of `Scan`."""

from spikesink.analyse.passes import Criteria
from spikesink.analyse.passes import Scan as Scanned

__all__ = ["Criteria", "Scanned"]
