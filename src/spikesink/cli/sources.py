"""From the options of a command to token ids: shared by every command that reads text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikesink.access import AccessedModel, load
from spikesink.data.corpus import Corpus, default_corpus, hub_corpus, prompt_corpus, read_corpus
from spikesink.data.tokens import Tokens, load_token_ids, tokenise
from spikesink.errors import InputError


@dataclass(frozen=True)
class Source:
    """What the user said about the text to measure on."""

    text: Path | None = None
    prompt: str | None = None
    dataset: str | None = None
    tokens: Path | None = None
    pack: bool = False
    sequences: int = 64
    seq_len: int = 64
    bos: str = "auto"
    chat_template: bool = False

    def __post_init__(self) -> None:
        sources = {"--text": self.text, "--prompt": self.prompt, "--dataset": self.dataset, "--tokens": self.tokens}
        given = [name for name, source in sources.items() if source is not None]
        if len(given) > 1:
            raise InputError(f"Got {' and '.join(given)}; expected one source of text.")


def load_with_progress(progress: Callable[[str, int, int], None], model: str | None, **options: Any) -> AccessedModel:
    """`access.load` as one step of the progress bar."""
    progress("load model", 0, 1)
    accessed = load(model, progress=progress, **options)
    progress("load model", 1, 1)
    return accessed


def read_tokens(source: Source, accessed: AccessedModel) -> Tokens:
    """Token ids of the source; raises InputError with what to do."""
    if source.tokens is not None:
        return load_token_ids(source.tokens)
    if accessed.tokenizer is None:
        raise InputError(
            f"'{accessed.name}' has no tokenizer that can be loaded; give token ids instead: --tokens IDS.npy "
            "(an integer array of shape sequences x seq_len)."
        )
    _check_positions(source, accessed)
    return tokenise(
        _corpus(source),
        accessed.tokenizer,
        seq_len=source.seq_len,
        sequences=source.sequences,
        bos=source.bos,
        pack=source.pack,
        chat_template=source.chat_template,
    )


def _corpus(source: Source) -> Corpus:
    if source.prompt is not None:
        return prompt_corpus(source.prompt)
    if source.text is not None:
        return read_corpus(source.text)
    return hub_corpus(source.dataset) if source.dataset is not None else default_corpus()


def _check_positions(source: Source, accessed: AccessedModel) -> None:
    limit = accessed.max_positions
    if limit is not None and source.seq_len > limit:
        raise InputError(f"--seq-len {source.seq_len} is beyond the model's {limit} positions; use at most {limit}.")
