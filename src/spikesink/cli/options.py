"""Options that several commands share: each group is a class that a command takes as one argument."""

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import typer

from spikesink.cli.checks import IDLE, check_choice, refuse_idle
from spikesink.errors import InputError

BOS = ("auto", "always", "never")
METRICS = ("sun2026", "gu2025")
MODEL, TEXT, MEASURING, RESULT = "The model", "The text", "What is measured", "The result"
"""Headings in the help."""
DATASET = "Hub data set (NAME\\[@REVISION]\\[:CONFIG\\[:SPLIT]]), streamed."
"""Help of an option; brackets without a backslash would be markup."""
SEQUENCES = 64
"""Of a text, where the command line does not say how many."""
FLAG = " "
"""What the help shows as the value of an option that takes none."""
TextFile = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="Documents: a .txt (one a line), .jsonl, .json, .csv, .parquet (also .gz, .zst) or saved data set.",
        rich_help_panel=TEXT,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(help=DATASET, rich_help_panel=TEXT),
]


@dataclass(frozen=True)
class Loading:
    """Which model, and how it is loaded."""

    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub id, checkpoint or adapter folder, or GGUF file; nothing for the embedded SmolLM2.",
            show_default=False,
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="float32, bfloat16, float16 or float64 (also fp16, bf16, half); default float32 on CPU, the "
            "checkpoint's on a GPU.",
            rich_help_panel=MODEL,
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda|cuda:N|auto",
            help="auto shards over all GPUs; default a GPU if there is one.",
            rich_help_panel=MODEL,
        ),
    ] = None
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.", rich_help_panel=MODEL)
    ] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", metavar=FLAG, help="Run code that comes with the checkpoint.", rich_help_panel=MODEL
        ),
    ] = False
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", metavar=FLAG, help="Read pickle weights, which can run code.", rich_help_panel=MODEL
        ),
    ] = False

    base: Annotated[
        str | None,
        typer.Option(help="The model that an adapter adapts, where it is not the one it names.", rich_help_panel=MODEL),
    ] = None

    def check(self) -> None:
        """Refuse what cannot be had before torch is imported, which takes longer. Raises ModelError, InputError."""
        from spikesink.reach import check_reachable, check_revision, is_hub_id
        from spikesink.requirement import dtype_name

        if self.dtype is not None:
            dtype_name(self.dtype)
        if str(self.model).lower() in ("true", "false"):
            raise InputError(f"Got '{self.model}' as the model; options such as --pack take no value: leave it out.")
        check_revision(self.model, self.revision)
        if is_hub_id(self.model):
            check_reachable(str(self.model), self.revision)

    def words(self) -> list[str]:
        """The model on a command line, with the options of which a record says nothing."""
        base = ["--base", self.base] if self.base else []
        flags = {"--trust-remote-code": self.trust_remote_code, "--allow-pickle": self.allow_pickle}
        return [str(self.model), *base, *(flag for flag, given in flags.items() if given)]

    def load(self, progress: Callable[[str, int, int], None], *, verify: bool = True) -> Any:
        """The accessed model, as one step of the progress bar; verified also where it was before if `verify`."""
        from spikesink.access import load

        progress("load model", 0, 1)
        accessed = load(
            self.model, dtype=self.dtype, device=self.device, revision=self.revision,
            trust_remote_code=self.trust_remote_code, allow_pickle=self.allow_pickle, base=self.base,
            verify=verify, progress=progress,
        )  # fmt: skip
        progress("load model", 1, 1)
        return accessed


@dataclass(frozen=True)
class LoadingOnce(Loading):
    """The same, of a checkpoint that need not be verified each time."""

    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            metavar=FLAG,
            help="Verify again what was verified before for the same files and versions.",
            rich_help_panel=MODEL,
        ),
    ] = False

    def load(self, progress: Callable[[str, int, int], None], *, verify: bool = False) -> Any:
        accessed = super().load(progress, verify=verify or self.verify)
        if accessed.verified_before:
            print("Verified before: same files, versions, dtype and device; --verify does it again.", file=sys.stderr)
        return accessed


@dataclass(frozen=True)
class Text:
    """Which text to measure on, and how it becomes token ids."""

    policies: ClassVar[tuple[str, ...]] = BOS
    text: TextFile = None
    dataset: Dataset = None
    field: Annotated[
        str | None,
        typer.Option(help="Field with the text; default text, else messages or conversations.", rich_help_panel=TEXT),
    ] = None
    tokens: Annotated[
        Path | None,
        typer.Option(help="An .npy of token ids (sequences, seq_len), evaluated as they are.", rich_help_panel=TEXT),
    ] = None
    pack: Annotated[
        bool,
        typer.Option(
            "--pack", metavar=FLAG, help="Concatenate documents instead of cutting each.", rich_help_panel=TEXT
        ),
    ] = False
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens per sequence.", rich_help_panel=TEXT)] = 64
    bos: Annotated[
        str,
        typer.Option(metavar="|".join(BOS), help="auto: as the tokenizer does.", rich_help_panel=TEXT),
    ] = "auto"
    chat_template: Annotated[
        bool,
        typer.Option(
            "--chat-template", metavar=FLAG, help="Wrap each document as a user's message.", rich_help_panel=TEXT
        ),
    ] = False

    def check(self, context: typer.Context, prompt: str | None = None) -> None:
        """Refuse what can be refused before anything is loaded. Raises InputError."""
        from spikesink.data.files import check_file
        from spikesink.reach import check_dataset_reachable

        sources = {"--text": self.text, "--prompt": prompt, "--dataset": self.dataset, "--tokens": self.tokens}
        given = [name for name, source in sources.items() if source is not None]
        if len(given) > 1:
            raise InputError(f"Got {' and '.join(given)}; expected one source of text.")
        source = given[0] if given else None
        if source in IDLE:
            refuse_idle(context, *IDLE[source])
        check_choice("--bos", self.bos, self.policies)
        if self.dataset is not None:
            check_dataset_reachable(self.dataset)
        if self.text is not None and not self.text.is_dir():
            check_file(self.text, "text file")
        if self.tokens is not None:
            check_file(self.tokens, "token file (.npy)")

    def read(
        self,
        accessed: Any,
        sequences: int | None,
        prompt: str | None = None,
        *,
        default: int = SEQUENCES,
        beyond: bool = False,
    ) -> Any:
        """Token ids of the source for an accessed model, beyond its positions if told so.

        sequences: at most so many; None: all of a file of ids, `default` of a text. Raises InputError with what to do.
        """
        from spikesink.data import corpus
        from spikesink.data.tokenise import tokenise
        from spikesink.data.tokens import load_token_ids

        if self.tokens is not None:
            return load_token_ids(self.tokens, sequences)
        if accessed.tokenizer is None:
            raise InputError(
                f"'{accessed.name}' has no tokenizer that can be loaded{accessed.why_untokenised}; give token ids "
                "instead: --tokens IDS.npy "
                "(an integer array of shape sequences x seq_len)."
            )
        limit = accessed.max_positions
        if limit is not None and self.seq_len > limit and not beyond:
            raise InputError(f"--seq-len {self.seq_len} is beyond the model's {limit} positions; use at most {limit}.")
        if prompt is not None:
            documents = corpus.prompt_corpus(prompt)
        else:
            documents = corpus.chosen_corpus(self.text, self.dataset, self.field)
        return tokenise(
            documents, accessed.tokenizer, seq_len=self.seq_len,
            sequences=default if sequences is None else sequences, bos=self.bos, pack=self.pack,
            chat_template=self.chat_template,
        )  # fmt: skip


@dataclass(frozen=True)
class Sinking:
    """When a head counts as a sink head, and how many sequences go through the model at once."""

    epsilon: Annotated[
        float, typer.Option(help="Importance above which a key is a sink.", rich_help_panel=MEASURING)
    ] = 0.3
    sink_metric: Annotated[
        str,
        typer.Option(metavar="|".join(METRICS), help="Sun et al. 2026 or Gu et al. 2025.", rich_help_panel=MEASURING),
    ] = "sun2026"
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences per forward pass; default about 1024 tokens.", rich_help_panel=MEASURING),
    ] = None

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded. Raises InputError."""
        check_choice("--sink-metric", self.sink_metric, METRICS)
        if not 0 < self.epsilon < 1:
            raise InputError(f"Got --epsilon {self.epsilon:g}; expected epsilon between 0 and 1, e.g. 0.3.")


Json = Annotated[
    bool,
    typer.Option(
        "--json", metavar=FLAG, help="Print the record as JSON and nothing else on stdout.", rich_help_panel=RESULT
    ),
]


@dataclass(frozen=True)
class Output:
    """Where the record goes."""

    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the record; default runs/MODEL-TIME, none with --json.", rich_help_panel=RESULT),
    ] = None
    force: Annotated[
        bool,
        typer.Option("--force", metavar=FLAG, help="Replace an existing record.", rich_help_panel=RESULT),
    ] = False
    json: Json = False

    def check(self, context: typer.Context, *files: str) -> None:
        """Refuse an --out in which one of the files could not be written, before anything is loaded, and --force alone.

        Raises OutputError and InputError.
        """
        if self.out is None:
            refuse_idle(context, ("force",), "without --out no record is replaced")
            return
        for path in (self.out / file for file in files):
            self._check(path.parent, path.name)

    def folder(self, model_name: str, file: str) -> Path | None:
        """See `output_folder`. Raises OutputError where a record could not be written there, before it is measured."""
        folder = output_folder(self.out, self.json, model_name)
        if folder is not None and self.out is None:
            self._check(folder, file)
        return folder

    def _check(self, folder: Path, file: str) -> None:
        from spikesink.records import check_output

        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        check_output(folder, file, force=self.force)
        # They were made to see that they can be: a run that fails or is stopped leaves none.
        with suppress(OSError):
            for each in missing:
                each.rmdir()


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of the classes above are options of their own on the command line."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if name != "return" and is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        annotations = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(one.name, parameter.kind, default=one.default, annotation=annotations[one.name])
            for one in fields(groups[name])
        ]
    signature = inspect.Signature(parameters)

    @wraps(command)
    def flat(*given: Any, **more: Any) -> None:
        bound = signature.bind(*given, **more)
        bound.apply_defaults()
        values = dict(bound.arguments)
        made = {name: kind(**{one.name: values.pop(one.name) for one in fields(kind)}) for name, kind in groups.items()}
        command(**made, **values)

    flat.__signature__ = signature  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del flat.__wrapped__  # type: ignore[attr-defined]
    return flat


def output_folder(out: Path | None, json: bool, model_name: str) -> Path | None:
    """Where the record goes: `--out`, or runs/MODEL-TIME; nowhere where only JSON was asked for."""
    import time
    from itertools import count

    if out is not None or json:
        return out
    name = f"{safe_name(model_name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    # Two runs in one second, or a clock that was set back: never the folder of another run.
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(folder for folder in (Path("runs") / each for each in names) if not folder.exists())


def plain(text: str) -> str:
    """Text for the terminal: names from a file may hold what a terminal obeys."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def safe_name(name: str) -> str:
    """A model's name as one folder name: a hostile or nested name never leaves the runs folder."""
    kept = "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
    return kept.strip(".-")[:80] or "model"
