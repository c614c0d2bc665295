"""A grid: variants by name, each one change of a base recipe, and the paper's number beside it. One YAML file each."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import BeforeValidator, Field, PositiveFloat, TypeAdapter, ValidationError, model_validator

from spikesink.errors import InputError, did_you_mean, short
from spikesink.records.study import PaperResult
from spikesink.study import STUDIES
from spikesink.study.claims import Claim
from spikesink.train.plain_yaml import read_yaml
from spikesink.train.recipe import Recipe, changed
from spikesink.zoo.choice import Choice, explain, kinds_in

SAFE = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
"""A variant's name is a file name."""


class Scale(Choice):
    """A number of the base recipe times a factor: the path's own, or that of another path."""

    by: PositiveFloat
    of: str | None = None


def _factor(value: object) -> object:
    return {"by": value} if isinstance(value, int | float) else value


class Variant(Choice):
    """Changes of the base recipe by dotted path: values to set, numbers to scale."""

    summary: str
    set: dict[str, Any] = Field(default_factory=dict)
    scale: dict[str, Annotated[Scale, BeforeValidator(_factor)]] = Field(default_factory=dict)
    paper: PaperResult | None = None

    @model_validator(mode="after")
    def _check(self) -> "Variant":
        """Refuse what no recipe can have: a typo is no variant that the preset is too small for."""
        for path, value in self.set.items():
            _check_value(path, value)
        for path in (*self.scale, *(scale.of for scale in self.scale.values() if scale.of)):
            if any(kinds_in(each) for each in _types_at(path)):
                raise ValueError(f"scale {path}: a choice stands there; expected a number there, one of its options")
        return self


class Grid(Choice):
    """Variants of one question, and which of them the others are compared with."""

    about: str
    baseline: str
    variants: dict[Annotated[str, Field(pattern=SAFE, max_length=80)], Variant] = Field(min_length=1)
    claims: list[Claim] = Field(default_factory=list)
    """What the variants can say about the paper's claims; a grid without any decides none."""

    @model_validator(mode="after")
    def _check(self) -> "Grid":
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is '{self.baseline}'{did_you_mean(self.baseline, list(self.variants))}")
        for speaker in (name for claim in self.claims for name in claim.speak):
            if speaker not in self.variants or speaker == self.baseline:
                raise ValueError(f"'{speaker}' speaks for a claim{did_you_mean(speaker, list(self.variants))}")
        return self


@dataclass(frozen=True)
class Cell:
    """One training run of a study: the variant's recipe with its seed, and the base whose held-out text it is measured
    on."""

    study: str
    variant: str
    seed: int
    recipe: Recipe
    base: Recipe

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.seed}"

    @property
    def preset(self) -> str:
        return self.base.name


def load_grid(name_or_path: str) -> tuple[str, Grid]:
    """(Name, grid) of a study by name or of a user's YAML file. Raises InputError."""
    if name_or_path in STUDIES:
        text = (resources.files("spikesink.study") / "grids" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return name_or_path, Grid.parse(read_yaml(text, name_or_path))
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(f"'{name_or_path}' is neither a study nor a YAML file{did_you_mean(name_or_path, STUDIES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The grid '{path}' cannot be read: {short(error)}.") from error
    content = read_yaml(text, f"The grid '{path}'")
    if not isinstance(content, dict):
        raise InputError(f"The grid '{path}' holds a {type(content).__name__}; expected about, baseline and variants.")
    return path.stem, Grid.parse(content)


def variant_recipe(base: Recipe, variant: Variant, seed: int = 0, name: str = "variant") -> Recipe:
    """The base with the variant's changes; the seed is that of weights and data. Raises InputError."""
    content = base.model_dump(mode="json")
    values = {**variant.set, **{path: _scaled(content, path, scale) for path, scale in variant.scale.items()}}
    values |= {"training.seed": seed, "data.seed": seed}
    changes = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    return Recipe.read(content, changes).model_copy(update={"name": name})


def variant_changes(base: Recipe, variant: Variant) -> list[str]:
    """What the variant changes, as `path: before -> after`."""
    return changed(variant_recipe(base, Variant(summary="")).essence(), variant_recipe(base, variant).essence())


def cells(
    study: str, grid: Grid, base: Recipe, seeds: int, only: list[str] | None = None, first_seed: int = 0
) -> list[Cell]:
    """Every cell, all variants of a seed before the next seed; without `only`, those that the base is large enough for.

    Raises InputError for a variant that is unknown, or asked for and impossible.
    """
    unknown = next((name for name in only or [] if name not in grid.variants), None)
    if unknown is not None:
        raise InputError(f"The study '{study}' has no variant '{unknown}'{did_you_mean(unknown, list(grid.variants))}")
    left_out = impossible(grid, base) if only is None else {}
    chosen = [name for name in grid.variants if only is None or name in (*only, grid.baseline)]
    return [
        cell_of(study, grid, base, name, seed)
        for seed in range(first_seed, first_seed + seeds)
        for name in chosen
        if name not in left_out
    ]


def cell_of(study: str, grid: Grid, base: Recipe, variant: str, seed: int) -> Cell:
    """One cell. Raises InputError for a variant that cannot be made of the base."""
    return Cell(study, variant, seed, variant_recipe(base, grid.variants[variant], seed, f"{variant}-{seed}"), base)


def impossible(grid: Grid, base: Recipe) -> dict[str, str]:
    """Variants that cannot be made of the base, and why."""
    reasons = {}
    for name, variant in grid.variants.items():
        try:
            variant_recipe(base, variant)
        except InputError as error:
            reasons[name] = str(error)
    return reasons


def _types_at(path: str) -> list[Any]:
    """What may stand at a dotted path of a recipe, over all kinds. Raises ValueError for a path that none has."""
    keys = path.split(".")
    types: list[Any] = [Recipe]
    for depth, key in enumerate(keys):
        kinds = [kind for each in types for kind in kinds_in(each)]
        hints = [get_type_hints(kind, include_extras=True) for kind in kinds]
        types = [hint[key] for kind, hint in zip(kinds, hints, strict=True) if key in kind.model_fields]
        if not types:
            known = list(dict.fromkeys(name for kind in kinds for name in kind.model_fields))
            hint = did_you_mean(key, known) if known else "; it has no options"
            raise ValueError(f"{path}: {'.'.join(keys[:depth]) or 'a recipe'} has no '{key}'{hint}")
    return types


def _check_value(path: str, value: object) -> None:
    """Refuse a value that no recipe can have at its path. Raises ValueError."""
    problems: list[str] = []
    for each in _types_at(path):
        try:
            TypeAdapter(each).validate_python(value)
        except ValidationError as error:
            problems += explain(error, value, path)
        else:
            return
    raise ValueError(" ".join(dict.fromkeys(problems)))


def _scaled(content: dict[str, Any], path: str, scale: Scale) -> int | float:
    """A number of the base times the factor; whole where the base's is. Raises InputError."""
    number: Any = content
    for key in (scale.of or path).split("."):
        number = number.get(key) if isinstance(number, dict) else None
    if not isinstance(number, int | float):
        raise InputError(f"scale {path}: the base has {number!r} at {scale.of or path}; expected a number there.")
    scaled = number * scale.by
    if isinstance(number, float):
        return scaled
    if scaled != int(scaled) or scaled < 1:
        raise InputError(f"scale {path}: {number} x {scale.by:g} is no whole number; the base is too small for it.")
    return int(scaled)
