"""What every choice of the spec is: a small frozen model that owns its options and no others."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from spikesink.errors import InputError, did_you_mean

MAX_SHOWN = 200
"""Characters of a wrong value in a message."""
MAX_PROBLEMS = 20
"""Problems named in one message."""
Size = Annotated[int, Field(gt=0, le=2**20)]
"""A number of channels, heads, layers, ...: bounded, so that a product of three of them is still a number of bytes."""


class Choice(BaseModel):
    """A node of the spec; a field that it does not own is refused, naming the field."""

    # Infinities would pass every lower bound, and no record can hold them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, content: object, where: str = "") -> Self:
        """Validate plain data. Raises InputError that names the dotted path, e.g. `norm.eps`, below `where`."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            lines = explain(error, content, where, cls)
            rest = [f"... and {len(lines) - MAX_PROBLEMS} more."] if len(lines) > MAX_PROBLEMS else []
            raise InputError("\n".join([*lines[:MAX_PROBLEMS], *rest])) from None


def _from_name(value: object) -> object:
    """`rmsnorm` is short for `{kind: rmsnorm}`, and nothing for `{kind: none}`."""
    if value is None:
        return {"kind": "none"}
    return {"kind": value} if isinstance(value, str) else value


KIND = Field(discriminator="kind")
BY_NAME = BeforeValidator(_from_name)
"""Together they make a union of choices a field type: told apart by `kind`, which may stand alone."""


def kinds_in(annotation: Any) -> list[type[BaseModel]]:
    """The choices that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in kinds_in(part)]


def explain(error: ValidationError, content: object, where: str = "", kind: type[BaseModel] | None = None) -> list[str]:
    """One line per problem of a pydantic error: dotted path, what was got, what was expected; kind: of the content."""
    lines = []
    for problem in error.errors():
        path = ".".join([*([where] if where else []), *dotted(problem["loc"], content)])
        lines.append(f"{path + ': ' if path else ''}{_message(problem, kind)}")
    return lines


def dotted(location: tuple[int | str, ...], content: object) -> list[str]:
    """The keys of an error's location without the union tags that pydantic puts between them."""
    path: list[str] = []
    here: object = content
    for part in location:
        is_tag = isinstance(part, str) and _kind(here) == part and not (isinstance(here, Mapping) and part in here)
        if is_tag:
            continue
        path.append(str(part))
        here = here.get(part) if isinstance(here, Mapping) else getattr(here, str(part), None)
    return path


def _kind(value: object) -> object:
    if isinstance(value, Mapping):
        return value.get("kind")
    return value if isinstance(value, str) else getattr(value, "kind", None)


def _message(problem: Any, kind: type[BaseModel] | None) -> str:
    got = _shown(problem["input"])
    if problem["type"] == "extra_forbidden":
        hint = "" if kind is None else did_you_mean(str(problem["loc"][-1]), _options(kind, problem["loc"][:-1]))
        advice = hint if "did you mean" in hint else "; remove it, or choose the kind that has it."
        return f"no such option (got {got}){advice}"
    if problem["type"] == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
        return f"unknown kind '{problem['ctx']['tag']}'{did_you_mean(problem['ctx']['tag'], tags)}"
    if problem["type"] == "union_tag_not_found":
        return f"expected a kind, by name or as {{kind: ...}}; got {got}."
    shown = "" if problem["type"] == "value_error" else f"; got {got}"
    text = f"{problem['msg'].removeprefix('Value error, ')}{shown}"
    return text if text.endswith((".", "?")) else f"{text}."


def _options(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the options at an error's location, union tags among its parts."""
    kinds = [kind]
    for part in location:
        tagged = [each for each in kinds if "kind" in each.model_fields and each.model_fields["kind"].default == part]
        below = [each.model_fields[part].annotation for each in kinds if part in each.model_fields]
        kinds = tagged or [inner for annotation in below for inner in kinds_in(annotation)] or kinds
    return [name for each in kinds for name in each.model_fields]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."
