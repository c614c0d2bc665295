"""Tokenizers that are made here: one token a character, and byte-level BPE trained on a corpus."""

from pathlib import Path
from typing import Any

from spikesink.atomic import make_folder
from spikesink.data.corpus import Corpus
from spikesink.errors import OutputError

BOS, EOS = "<bos>", "<eos>"


def character_tokenizer(tokens: tuple[str, ...]) -> Any:
    """A token a character; `tokens[0]` is BOS. Characters that are not among them are left out."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=tokens[0], clean_up_tokenization_spaces=False)


def train_bpe(corpus: Corpus, vocab_size: int, folder: Path) -> Any:
    """A byte-level BPE of `vocab_size` tokens, BOS and EOS among them, trained on the corpus; cached in `folder`."""
    from transformers import PreTrainedTokenizerFast

    try:
        make_folder(folder, lambda empty: _save(_trained(corpus, vocab_size), empty), _is_whole)
    except OSError as error:
        raise OutputError(
            f"The tokenizer '{folder}' cannot be written: {error}. Free some space, or set SPIKESINK_CACHE to a folder "
            "that has it."
        ) from error
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _is_whole(folder: Path) -> bool:
    """Whether it reads, with its special tokens: a cache that something else damaged is made again."""
    from transformers import PreTrainedTokenizerFast

    try:
        read = PreTrainedTokenizerFast.from_pretrained(folder)
        return (read.bos_token, read.eos_token) == (BOS, EOS)
    except Exception:
        return False


def _save(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    # The Rust side has an exception of its own for a full disk.
    except Exception as error:
        raise OSError(str(error)) from error


def _trained(corpus: Corpus, vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.documents(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
