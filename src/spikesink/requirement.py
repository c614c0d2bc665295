"""Which transformers spikesink works with, and in which types it loads models, asked before anything is imported."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from spikesink.errors import ModelError, RequirementError, did_you_mean

TRANSFORMERS = ">=5.6.2,<6"
"""What measuring needs, as in pyproject.toml: the oldest version that the survey of docs/families.md was run with."""
TRANSFORMERS_ZOO = ">=5.24,<6"
"""What the zoo's decoder needs: the cache is called `cache` since 5.24."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Types that a model can be loaded in, as torch calls them."""
ALIASES = {"fp32": "float32", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16",
           "fp64": "float64", "double": "float64"}  # fmt: skip
"""The same as they are called elsewhere."""


def dtype_name(name: str) -> str:
    """The type as torch calls it. Raises ModelError for one that is not known."""
    known = ALIASES.get(name, name)
    if known not in DTYPES:
        raise ModelError(f"Unknown dtype '{name}'{did_you_mean(name, DTYPES)}")
    return known


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
