"""Errors that a user can act on: what was got, what was expected, what to do.

Every error that bad input can cause derives from `SpikesinkError`; the command line prints its message without
a traceback and exits with code 2.
"""


class SpikesinkError(Exception):
    """Base of every error caused by what the user gave; its message says got, expected and what to do."""


class RequirementError(SpikesinkError):
    """An installed package has a version that spikesink, or a part of it, does not work with."""


class InputError(SpikesinkError):
    """Text, token ids or an option are not usable (empty, too short, wrong shape, outside the vocabulary)."""


class ModelError(SpikesinkError):
    """The model cannot be found, read or loaded."""


class UnsupportedModelError(ModelError):
    """The model was read, but it is not one whose residual stream and attention can be measured."""


class VerificationError(UnsupportedModelError):
    """The numeric self-check failed: what was captured does not reproduce the model's own arithmetic."""


class NumericError(SpikesinkError):
    """A forward pass produced values that are not finite."""


class OutputError(SpikesinkError):
    """A result cannot be written, or would overwrite one that exists."""


class RecordError(SpikesinkError):
    """A record file cannot be read: missing, truncated, of another schema, or not a record."""


class DoesNotApplyError(SpikesinkError):
    """A measure has no meaning for this model; the reason goes into the record and the other measures go on."""


def did_you_mean(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return `"; did you mean 'x'?"` for the nearest known word, or the whole list when none is near."""
    from difflib import get_close_matches

    by_lower = {each.lower(): each for each in known}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{by_lower[near[0]]}'?"
    return f"; known: {', '.join(known)}."


def short(error: BaseException) -> str:
    """What an error of a library says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
