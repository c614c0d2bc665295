"""Tokenizers that are made here: one token a character, and byte-level BPE trained on a corpus."""

from pathlib import Path
from typing import Any

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

    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
    fast.save_pretrained(folder)
    return fast
