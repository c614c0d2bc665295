"""The recipe of a training run: one YAML file, validated; errors name the dotted path."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from spikesink.atomic import data_sha256
from spikesink.data.restarts import check_restarts
from spikesink.errors import InputError, did_you_mean
from spikesink.train.plain_yaml import MAX_CHARACTERS, read_yaml
from spikesink.train.presets import PRESETS
from spikesink.zoo.choice import BY_NAME, KIND, Choice, Size
from spikesink.zoo.spec import DecoderSpec

ORIGIN = "model.from="
"""Begins the override that replaces the whole model by a pretrained one."""
LATER = {
    "pretrained": None,
    "data.source.restarts": 0,
    "data.source.field": None,
    "data.source.chat_template": False,
    "model.qkv_bias": False,
    "model.arrangement.qk_norm_over": None,
    "model.attention_softcap": None,
    "model.logit_softcap": None,
    "model.position.theta_by_layer": [],
}
"""Options that came after the first runs, with their defaults: left out of a run's identity, so that it stays."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class BigramBackcopyData(Choice):
    """Characters of a bigram chain with triggers; made on the fly, no sample ever repeats."""

    kind: Literal["bigram_backcopy"] = "bigram_backcopy"
    triggers: PositiveInt = 3
    text: str | None = None
    """A text as of `TextData` whose bigrams are taken; nothing for the English that every Python carries."""
    restarts: NonNegativeInt = 0
    """Places in a sequence where it starts again with BOS, at random: BOS is then not the first token alone."""


class PackedData(Choice):
    """Text as one stream of tokens, cut into sequences."""

    restarts: NonNegativeInt = 0
    """Places in a sequence where BOS stands again, at random, the text going on behind it."""


class PythonSourceData(PackedData):
    """Every .py file of the standard library, with a byte-level BPE tokenizer trained on it."""

    kind: Literal["python_source"] = "python_source"


class TextData(PackedData):
    """A .txt (a document a line), .jsonl, .json, .csv or .parquet (field `text`), also in .gz or .zst."""

    kind: Literal["text"] = "text"
    path: str
    tokenizer: str | None = None
    """Hub id or folder; nothing trains a byte-level BPE of model.vocab_size on the text."""
    field: str | None = None
    """Field of a row with the text, where it is another."""
    chat_template: bool = False
    """Wrap each document as a user's message."""


class HubData(PackedData):
    """A hub data set, streamed once into a token file: `NAME[@REVISION][:CONFIG[:SPLIT]]`."""

    kind: Literal["hub"] = "hub"
    name: str
    tokenizer: str
    tokens: PositiveInt
    """Tokens to stream before training; fewer than the run needs are repeated in another order."""
    field: str | None = None
    chat_template: bool = False


class IdsData(Choice):
    """Token ids of a pretrained model's tokenizer: an .npy of integers (sequences, seq_len), the last ones held out."""

    kind: Literal["ids"] = "ids"
    path: str


Source = Annotated[BigramBackcopyData | PythonSourceData | TextData | HubData | IdsData, KIND, BY_NAME]


class Data(Choice):
    """What is trained on. Sample i depends on (seed, i) alone; the held-out split is never among the samples."""

    source: Source = BigramBackcopyData()
    seq_len: Annotated[int, Field(ge=3)] = 4096
    bos: bool = True
    """Every sequence begins with BOS."""
    seed: NonNegativeInt = 0
    held_out: Size = 64
    """Sequences for evaluation and the monitor."""

    @model_validator(mode="after")
    def _check(self) -> "Data":
        check_restarts(getattr(self.source, "restarts", 0), self.seq_len, bos=self.bos)
        return self


class Optimiser(Choice):
    """AdamW, decay on matrices and embeddings only; cosine from the peak to `min_lr_ratio` of it, after a warm-up."""

    lr: PositiveFloat = 3e-4
    min_lr_ratio: Fraction = 0.1
    warmup_steps: NonNegativeInt = 2000
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    grad_clip: NonNegativeFloat = 1.0
    """0 for none."""


class Training(Choice):
    """How long, how much at a time, in what precision."""

    steps: PositiveInt = 50_000
    batch_size: Size = 512
    """Sequences per optimiser step, over all processes and accumulation steps."""
    micro_batch: PositiveInt | None = None
    """Sequences per forward pass and process; nothing for the whole share of a process."""
    seed: NonNegativeInt = 0
    """Of the initial weights."""
    loss_min: PositiveInt = 1
    """Smallest context length whose prediction counts (table 8): the token at index c has context length c."""
    loss_max: PositiveInt | None = None
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: autocast, weights and optimiser state stay fp32. auto: bf16 where the processor multiplies in it, else
    fp32; a run's identity is what it came to."""
    compile: bool = False
    activation_checkpointing: bool = False
    fsdp: bool = False
    """Shard parameters, gradients and optimiser state over all processes (FSDP2); refused where nothing is sharded."""


class Monitor(Choice):
    """The anatomy of the model while it trains, on the first held-out sequences."""

    every: NonNegativeInt = 100
    """Steps; 0 for never."""
    sequences: Size = 16


class Running(Choice):
    """What does not change the result, and may differ when a run is resumed."""

    log_every: PositiveInt = 10
    eval_every: NonNegativeInt = 500
    save_every: PositiveInt = 500
    keep: PositiveInt = 2
    """Complete checkpoints kept."""
    threads: NonNegativeInt = 0
    """CPU threads; 0 leaves torch's choice."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Running":
        if self.save_every % self.log_every:
            raise ValueError(
                f"save_every is {self.save_every}, log_every {self.log_every}; expected a multiple, so that a resumed "
                "run logs the averages of an uninterrupted one"
            )
        return self


class Recipe(Choice):
    """Everything that a run depends on."""

    name: str = "run"
    pretrained: str | None = None
    """The model that training begins with, as `model.from` named it; nothing for fresh weights."""
    model: DecoderSpec = DecoderSpec()
    data: Data = Data()
    optimiser: Optimiser = Optimiser()
    training: Training = Training()
    monitor: Monitor = Monitor()
    running: Running = Running()

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.data.seq_len > self.model.max_positions:
            raise ValueError(
                f"data.seq_len is {self.data.seq_len}, model.max_positions {self.model.max_positions}; expected no "
                "longer sequences than positions"
            )
        if self.training.loss_min >= self.data.seq_len:
            raise ValueError(
                f"training.loss_min is {self.training.loss_min}, data.seq_len {self.data.seq_len}; no prediction counts"
            )
        last = self.training.loss_max
        if last is not None and last < self.training.loss_min:
            raise ValueError(f"training.loss_max is {last}, below training.loss_min {self.training.loss_min}")
        return self

    @property
    def tokens(self) -> int:
        """Tokens seen by the end."""
        return self.training.steps * self.training.batch_size * self.data.seq_len

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """What `training.precision` comes to on this machine."""
        if self.training.precision != "auto":
            return self.training.precision
        return "bf16" if _multiplies_bf16() else "fp32"

    def essence(self) -> dict[str, Any]:
        """What decides the result, as plain data: everything but `running`, `monitor`, the name and the micro-batch."""
        content = self.model_dump(mode="json", exclude={"running", "monitor", "name"})
        content["training"]["precision"] = self.precision
        for option in ("micro_batch", "fsdp", "activation_checkpointing"):
            del content["training"][option]
        for path, default in LATER.items():
            _drop(content, path.split("."), default)
        return content

    def sha256(self) -> str:
        return data_sha256(self.essence())

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def read(cls, content: object, changes: list[str] | None = None) -> Self:
        """Plain data with dotted overrides (`model.norm=dyt`) as a recipe. Raises InputError naming the path."""
        if not isinstance(content, dict):
            raise InputError(f"A recipe is a mapping of {', '.join(cls.model_fields)}; got {type(content).__name__}.")
        origins = [change for change in changes or [] if change.startswith(ORIGIN)]
        if origins:
            content = {**content, "model": {"from": origins[-1].removeprefix(ORIGIN)}}
        if isinstance(content.get("model"), dict) and "from" in content["model"]:
            from spikesink.train.pretrained import resolve

            content = resolve(content)
        full = cls.parse(content).model_dump(mode="json")
        for change in changes or []:
            if change not in origins:
                _override(full, change)
        return cls.parse(full)


def _drop(content: dict[str, Any], path: list[str], default: object) -> None:
    """Take an option out of nested data where it has its default."""
    *outer, last = path
    for key in outer:
        content = content.get(key, {})
    if last in content and content[last] == default:
        del content[last]


def _multiplies_bf16() -> bool:
    """Whether products in bf16 are faster here; where the processor only emulates them they are eight times slower."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, check, bool)()) for check in checks)


def load_recipe(name_or_path: str | Path, changes: list[str] | None = None) -> Recipe:
    """A preset by name or a YAML file, with dotted overrides. Raises InputError."""
    text = str(name_or_path)
    if text in PRESETS:
        content = (resources.files("spikesink.train") / "presets" / f"{text}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(text)
        if not path.is_file():
            raise InputError(f"'{text}' is neither a recipe file nor a preset{did_you_mean(text, PRESETS)}")
        try:
            with path.open(encoding="utf-8") as file:
                content = file.read(MAX_CHARACTERS + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The recipe '{path}' cannot be read: {error}.") from error
    return Recipe.read(read_yaml(content, f"The recipe '{text}'"), changes)


def changed(before: dict[str, Any], after: dict[str, Any], where: str = "") -> list[str]:
    """Lines `path: before -> after` of what differs between two recipes as plain data."""
    lines = []
    for key in before.keys() | after.keys():
        path = f"{where}.{key}" if where else key
        one, other = before.get(key), after.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and one.get("kind") == other.get("kind"):
            lines += changed(one, other, path)
        elif one != other:
            lines.append(f"{path}: {_brief(one)} -> {_brief(other)}")
    return sorted(lines)


def _brief(value: object) -> str:
    """A choice by its kind, with its options in brackets: `conditional (per=head, bias=False)`."""
    if not isinstance(value, dict) or "kind" not in value:
        return str(value)
    options = ", ".join(f"{name}={option}" for name, option in value.items() if name != "kind")
    return f"{value['kind']} ({options})" if options else str(value["kind"])


def _override(content: dict[str, Any], change: str) -> None:
    """Set one dotted path, e.g. `training.steps=10`; a value is YAML. A replaced `kind` forgets its options."""
    path, equals, value = change.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set {change!r}: expected PATH=VALUE, e.g. training.steps=1000 or model.norm=dyt.")
    here: Any = content
    above: Any = None
    for depth, key in enumerate(keys[:-1]):
        _check_key(here, keys, depth)
        if isinstance(here.setdefault(key, {}), str):
            here[key] = _Renewed(kind=here[key])
        above, here = here, here[key]
    _check_key(here, keys, len(keys) - 1)
    new = read_yaml(value, f"--set {path}: '{value[:100]}'")
    if keys[-1] == "kind" and above is not None:
        here = above[keys[-2]] = _Renewed()
    here[keys[-1]] = _number(new)


class _Renewed(dict[str, Any]):
    """The options of a kind that an override named: which there are, only validation knows."""


def _check_key(here: Any, keys: list[str], depth: int) -> None:
    if isinstance(here, _Renewed) or (isinstance(here, dict) and keys[depth] in here):
        return
    where = ".".join(keys[:depth]) or "the recipe"
    hint = did_you_mean(keys[depth], list(here)) if here and isinstance(here, dict) else "; it has no options."
    raise InputError(f"--set {'.'.join(keys)}: {where} has no '{keys[depth]}'{hint}")


def _number(value: object) -> object:
    """YAML 1.1 reads 2e-3 as text, since it has no point; everyone who types it means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
