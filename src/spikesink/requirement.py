"""Which transformers spikesink works with, asked before anything of it is imported."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from spikesink.errors import RequirementError

TRANSFORMERS = ">=5.6.2,<6"
"""What measuring needs, as in pyproject.toml: the oldest version that the survey of docs/families.md was run with."""
TRANSFORMERS_ZOO = ">=5.24,<6"
"""What the zoo's decoder needs: the cache is called `cache` since 5.24."""


def require_transformers(needed: str, what: str) -> None:
    """Raise RequirementError unless the installed transformers is one of `needed`, a version specifier."""
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        installed = "no version"
    # A pre-release of 6 is none of <6, one of 5.25 is.
    if installed == "no version" or not SpecifierSet(needed).contains(installed, prereleases=True):
        raise RequirementError(
            f"Got transformers {installed}; {what} needs {needed}. Run: pip install 'transformers{needed}'"
        )
