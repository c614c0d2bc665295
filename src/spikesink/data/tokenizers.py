"""Tokenizers that are made here: one token a character, and byte-level BPE trained on a corpus."""

from pathlib import Path
from typing import Any

from filelock import FileLock

from spikesink.data.corpus import Corpus

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

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "tokenizer.json").is_file():
            _trained(corpus, vocab_size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


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
