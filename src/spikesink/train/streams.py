"""From the recipe's data to training samples by index, held-out sequences, a tokenizer and what a record says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spikesink.atomic import cache_folder, data_sha256, file_sha256
from spikesink.data import Corpus, hub_corpus, read_corpus
from spikesink.data.bigram_backcopy import BigramBackcopy, BigramSampler, bigram_backcopy
from spikesink.data.corpus import python_source
from spikesink.data.encode import Encoder
from spikesink.data.packed import HELD_OUT_SHARE, PackedSampler, TokenFile, write_token_file
from spikesink.data.tokenizers import character_tokenizer, train_bpe
from spikesink.data.tokens import check_ids, load_token_ids
from spikesink.errors import InputError, short
from spikesink.observer import Progress
from spikesink.train.recipe import BigramBackcopyData, HubData, IdsData, PackedData, PythonSourceData, Recipe, TextData

HELD_OUT_STREAM = 1


@dataclass(frozen=True)
class Stream:
    """Training sequences by index, held-out ones (sequence, token), the tokenizer, and where all came from."""

    sample: Callable[[int], np.ndarray]
    held_out: np.ndarray
    tokenizer: Any
    provenance: dict[str, Any]


def open_stream(recipe: Recipe, progress: Progress) -> Stream:
    """The data of a recipe; tokenised files are cached. Raises InputError where it does not fit the model."""
    source = recipe.data.source
    if isinstance(source, BigramBackcopyData):
        return _generated(recipe, source)
    if isinstance(source, IdsData):
        return _given(recipe, source)
    return _packed(recipe, source, progress)


def source_sha256(recipe: Recipe) -> str | None:
    """Of the text that a recipe trains on, which a path or "this Python" does not name; None for a text of a hub."""
    source = recipe.data.source
    if isinstance(source, BigramBackcopyData):
        return _chain(recipe, source).sha256
    if isinstance(source, IdsData):
        return load_token_ids(source.path).source_sha256
    return None if isinstance(source, HubData) else _corpus(source).sha256


def _chain(recipe: Recipe, source: BigramBackcopyData) -> BigramBackcopy:
    corpus = read_corpus(Path(source.text)) if source.text is not None else None
    return bigram_backcopy(recipe.model.vocab_size, source.triggers, corpus)


def _generated(recipe: Recipe, source: BigramBackcopyData) -> Stream:
    data, chain = recipe.data, _chain(recipe, source)
    train = BigramSampler(chain, data.seq_len, bos=data.bos, seed=data.seed, restarts=source.restarts)
    held_out = BigramSampler(
        chain, data.seq_len, bos=data.bos, seed=data.seed, stream=HELD_OUT_STREAM, restarts=source.restarts
    )
    ids = np.stack([held_out.sample(index) for index in range(data.held_out)])
    # Of the predictions that the held-out loss counts: that of the token at index c is made at the one before.
    before = ids[:, :-1][:, recipe.training.loss_min - 1 : recipe.training.loss_max]
    provenance = {
        "source": source.kind,
        "source_sha256": chain.sha256,
        "source_description": f"bigrams of '{chain.source}' ({chain.source_sha256}), {source.triggers} triggers",
        # Where BOS comes again, and not the chain, decides a part of the loss.
        "entropy_nats": float(chain.conditional_entropy_nats()[before].mean()) if not source.restarts else None,
        "held_out": f"samples of stream {HELD_OUT_STREAM}",
    }
    return Stream(train.sample, ids, character_tokenizer(chain.tokens), provenance)


def _given(recipe: Recipe, source: IdsData) -> Stream:
    data, tokens = recipe.data, load_token_ids(source.path)
    check_ids(tokens, recipe.model.vocab_size, recipe.model.max_positions)
    sequences, length = tokens.ids.shape
    if length != data.seq_len or sequences <= data.held_out:
        raise InputError(
            f"'{source.path}' holds {sequences} sequences of {length} token ids; expected more than the "
            f"{data.held_out} that are held out, of {data.seq_len}. Set data.seq_len={length}, or data.held_out lower."
        )
    train = tokens.ids[: -data.held_out]
    provenance = {
        **{name: tokens.provenance()[name] for name in ("source", "source_sha256", "source_description")},
        "documents": len(train), "tokens": train.size, "held_out": f"the last {data.held_out} sequences",
        "passes": recipe.training.steps * recipe.training.batch_size / len(train),
    }  # fmt: skip
    sampler = PackedSampler(train.reshape(-1), length, bos_id=None, seed=data.seed)
    return Stream(sampler.sample, tokens.ids[-data.held_out :], _tokenizer(recipe, None), provenance)


def _packed(recipe: Recipe, source: PackedData, progress: Progress) -> Stream:
    data = recipe.data
    progress("prepare data", 0, 1)
    corpus = _corpus(source)
    tokenizer = _tokenizer(recipe, corpus)
    if len(tokenizer) > recipe.model.vocab_size:
        raise InputError(
            f"The tokenizer has {len(tokenizer)} tokens, model.vocab_size is {recipe.model.vocab_size}; expected "
            f"at least as many. Use --set model.vocab_size={len(tokenizer)}."
        )
    if data.bos and tokenizer.bos_token_id is None:
        raise InputError("data.bos is true, but the tokenizer has no BOS token; use --set data.bos=false.")
    limit = source.tokens if isinstance(source, HubData) else None
    chat = Encoder(tokenizer, "never", True) if getattr(source, "chat_template", False) else None
    folder = cache_folder() / "tokens" / _key(corpus, source, tokenizer)
    file = write_token_file(corpus, tokenizer, folder, max_tokens=limit, chat=chat, progress=progress)
    bos_id = tokenizer.bos_token_id if data.bos else None
    train, held_out = (_sampler(file, part, data, source.restarts, bos_id) for part in ("train", "held_out"))
    progress("prepare data", 1, 1)
    passes = recipe.training.steps * recipe.training.batch_size / train.pieces
    return Stream(train.sample, held_out.first(data.held_out), tokenizer, {**file.meta, "passes": passes})


def _sampler(file: TokenFile, part: str, data: Any, restarts: int, bos_id: int | None) -> PackedSampler:
    """Sequences of one part of the text. Raises InputError where it is too short, with what there is."""
    stream = file.train if part == "train" else file.held_out
    try:
        return PackedSampler(stream, data.seq_len, bos_id=bos_id, seed=data.seed, restarts=restarts)
    except InputError as error:
        raise InputError(
            f"The text '{file.meta['source']}' has {file.meta['documents']} documents, {file.meta['tokens']} tokens to "
            f"train on and {file.meta['held_out_tokens']} held out (one document in {HELD_OUT_SHARE}, by its hash): "
            f"{error} A document is a line; break long ones up."
        ) from error


def _corpus(source: Any) -> Corpus:
    if isinstance(source, PythonSourceData):
        return python_source()
    if isinstance(source, TextData):
        return read_corpus(Path(source.path), source.field)
    return hub_corpus(source.name, source.field)


def _tokenizer(recipe: Recipe, corpus: Corpus | None) -> Any:
    if recipe.pretrained is not None:
        from spikesink.train.pretrained import pretrained_tokenizer

        return pretrained_tokenizer(recipe.pretrained)
    if corpus is None:
        raise InputError("data.source is token ids, whose tokenizer is a pretrained model's: give model.from as well.")
    name = getattr(recipe.data.source, "tokenizer", None)
    if name is None:
        size, field = recipe.model.vocab_size, getattr(recipe.data.source, "field", None)
        key = f"{(corpus.sha256 or '')[:16]}-{size}" + (f"-{data_sha256(field)[:16]}" if field else "")
        return train_bpe(corpus, size, cache_folder() / "tokenizers" / key)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise InputError(
            f"data.source.tokenizer '{name}' cannot be loaded ({type(error).__name__}: {short(error)})."
        ) from error


def _key(corpus: Corpus, source: Any, tokenizer: Any) -> str:
    """A folder name for a token file: the corpus, by content or a hub's by its revision, and all that makes it ids."""
    text = corpus.sha256 or data_sha256([corpus.name, corpus.description])
    asked = {name: getattr(source, name, None) for name in ("field", "tokens", "chat_template")}
    ends = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    template = [tokenizer.chat_template, tokenizer.special_tokens_map] if asked["chat_template"] else None
    return f"{source.kind}-{text[:16]}-{data_sha256([_rules(tokenizer), asked, ends, template])[:16]}"


def _rules(tokenizer: Any) -> object:
    """How a tokenizer makes ids of a text, as plain data: a fast one says it, a slow one is what it is saved as."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        return [type(tokenizer).__name__, fast.to_str()]
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: file_sha256(path) for path in Path(folder).rglob("*") if path.is_file()}


class Samples(Dataset):
    """Sequences with their labels: -100 where the context length is outside [loss_min, loss_max]. Table 8."""

    def __init__(self, sample: Callable[[int], np.ndarray], count: int, loss_min: int, loss_max: int | None) -> None:
        self.sample, self.count = sample, count
        self.loss_min, self.loss_max = loss_min, loss_max

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.from_numpy(self.sample(index))
        labels = ids.clone()
        labels[: self.loss_min] = -100
        if self.loss_max is not None:
            labels[self.loss_max + 1 :] = -100
        return {"input_ids": ids, "labels": labels}
