"""Sections of the record that further measures fill, a module each; a record that is read knows those imported here.

Ratios and shares are fractions; block numbers are 1-based; heads, channels and positions are 0-based. A number that
has no meaning is null, and `reason` or the field's comment says why.
"""

from spikesink.records.sections import amplifier, geometry, heads, normalisation, properties, trigger

__all__ = ["amplifier", "geometry", "heads", "normalisation", "properties", "trigger"]
