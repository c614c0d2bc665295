"""What a survey asks for: models, their revisions, texts and conditions, from YAML or the command line, as cells."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from spikesink.data.files import PACKED
from spikesink.errors import InputError
from spikesink.measures import measures as known_measures
from spikesink.reach import is_hub_id
from spikesink.requirement import dtype_name
from spikesink.train.plain_yaml import read_yaml
from spikesink.zoo.choice import Choice

EMBEDDED, DEFAULT = "embedded", "default"
"""Names of the embedded model and of the text that needs no file."""
INTERVENTIONS, ROUNDING = "interventions", "rounding"
"""Measures that edit the model: what zeroing and freezing the spikes costs, and what int8 and fp8 do."""
STEP = re.compile(r"(?:checkpoint|step)[-_ ]?(\d+)", re.IGNORECASE)


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


class SurveyedText(Choice):
    """One text: a file, a hub data set, or token ids (.npy); nothing of these for the default text."""

    path: str | None = None
    dataset: str | None = None
    field: str | None = None
    pack: bool = False

    @property
    def ids(self) -> bool:
        """Whether it holds token ids, which no condition changes."""
        return self.path is not None and self.path.endswith(".npy")

    @property
    def source(self) -> str:
        return self.path or self.dataset or DEFAULT

    @model_validator(mode="after")
    def _all_apply(self) -> Self:
        """Nothing that is said of a text may be without effect."""
        if self.path is not None and self.dataset is not None:
            raise ValueError(f"got the path '{self.path}' and the dataset '{self.dataset}'; expected one of them")
        if self.pack and self.ids:
            raise ValueError(f"got pack, but '{self.path}' is token ids, which are evaluated as they are; leave it out")
        if self.field is not None and self.path is None and self.dataset is None:
            raise ValueError(f"got the field '{self.field}' without a path or dataset; name the one that has it")
        if self.field is not None and self.path is not None and _ending(self.path) in (".npy", ".txt"):
            raise ValueError(f"got the field '{self.field}', but '{self.path}' has no fields; leave it out")
        return self


def _ending(path: str) -> str:
    """Of a file's name, before that of what it is packed with."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in PACKED), "")


def _text(value: object) -> object:
    return {} if value == DEFAULT else {"path": value} if isinstance(value, str) else value


Texts = Annotated[
    tuple[Annotated[SurveyedText, BeforeValidator(_text)], ...], BeforeValidator(_listed), Field(min_length=1)
]


class SurveyedModel(Choice):
    """A hub id, folder or GGUF file, or `embedded`; its revisions: of the hub, or folders of a folder."""

    model: str
    name: str | None = None
    """What it is called; default the hub id, or the end of the path."""
    revisions: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """`all` for every branch and tag, or every folder named after a step."""
    texts: Texts | None = None
    dtype: Annotated[tuple[str, ...], BeforeValidator(_listed)] | None = None
    """Instead of the survey's, as `texts`."""
    tokens_per_step: PositiveInt | None = None


def _model(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


Bos = Literal["auto", "always", "never"]


class Spec(Choice):
    """A whole survey: every model on every text under every condition."""

    models: Annotated[tuple[Annotated[SurveyedModel, BeforeValidator(_model)], ...], BeforeValidator(_listed)] = ()
    texts: Texts = (SurveyedText(),)
    bos: Annotated[tuple[Bos, ...], BeforeValidator(_listed)] = ("auto",)
    dtype: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ("auto",)
    seq_len: Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_listed)] = (64,)
    chat_template: Annotated[tuple[bool, ...], BeforeValidator(_listed)] = (False,)
    sequences: PositiveInt = 64
    measures: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()

    @property
    def further(self) -> tuple[str, ...]:
        """Measures of a scan."""
        return tuple(name for name in self.measures if name not in (INTERVENTIONS, ROUNDING))


class Asked(Choice):
    """One cell: a text and the conditions that it is read under."""

    text: SurveyedText
    text_name: str
    bos: str
    dtype: str
    seq_len: int | None
    chat_template: bool
    sequences: int

    def key(self, model: str, revision: str | None) -> tuple[object, ...]:
        """That of its row."""
        return (model, revision, self.text_name, self.bos, self.dtype, self.seq_len, self.chat_template)


def read_spec(path: Path) -> Spec:
    """A survey from a YAML file. Raises InputError."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), f"'{path}'")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The survey '{path}' cannot be read: {error}.") from None
    return Spec.parse({} if content is None else content, path.name)


def check(spec: Spec) -> None:
    """Refuse an empty list, a name twice, and a measure or dtype that is not known. Raises InputError, ModelError."""
    if not spec.models:
        raise InputError(f"The survey names no model; give hub ids or folders, or '{EMBEDDED}' for the embedded one.")
    twice = [name for name, times in Counter(names(spec)).items() if times > 1]
    if twice:
        raise InputError(f"'{twice[0]}' is named twice; name each model once, or give one of them another `name`.")
    known = [*known_measures(), INTERVENTIONS, ROUNDING, "all"]
    for name in spec.measures:
        if name not in known:
            raise InputError(f"Unknown measure '{name}'; known: {', '.join(known)}.")
    for name in (*spec.dtype, *(dtype for model in spec.models for dtype in model.dtype or ())):
        if name != "auto":
            dtype_name(name)


def names(spec: Spec) -> list[str]:
    """What each model is called."""
    return short_names([model.name or model.model for model in spec.models])


def short_names(sources: Sequence[str]) -> list[str]:
    """Hub ids and plain names as they are; of paths the last two parts, more where that would be another's."""
    for parts in range(2, 9):
        short = [source if is_hub_id(source) else "/".join(Path(source).parts[-parts:]) for source in sources]
        if len(set(short)) == len(set(sources)):
            return short
    return list(sources)


def asked(spec: Spec, model: SurveyedModel) -> list[Asked]:
    """The cells of one model, each once; conditions that do not apply to ids as they are given collapse."""
    texts = model.texts or spec.texts
    called = short_names([text.source for text in texts])
    twice = [name for name, times in Counter(called).items() if times > 1]
    if twice:
        raise InputError(f"The text '{twice[0]}' is named twice; name each text once.")
    distinct: dict[Asked, None] = {}
    for text, name in zip(texts, called, strict=True):
        for dtype, length, bos, chat in product(model.dtype or spec.dtype, spec.seq_len, spec.bos, spec.chat_template):
            free = {"bos": "as given", "seq_len": None, "chat_template": False}
            given = {"bos": bos, "seq_len": length, "chat_template": chat}
            cell = Asked(
                text=text, text_name=name, dtype=dtype, sequences=spec.sequences, **(free if text.ids else given)
            )
            distinct[cell] = None
    return list(distinct)


def step_of(revision: str | None) -> int | None:
    """The training step that a revision's name says: step1000, checkpoint-500."""
    match = STEP.search(revision or "")
    return int(match.group(1)) if match else None
