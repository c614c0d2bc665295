"""Sections of the record that further measures fill, a module each; all are known to a record that is read.

Ratios and shares are fractions; block numbers are 1-based; heads, channels and positions are 0-based. A number that
has no meaning is null, and `reason` or the field's comment says why.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
