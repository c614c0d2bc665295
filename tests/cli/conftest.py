"""Checkpoints on disk to run the command line on."""

import pytest
from tiny import VOCAB, tiny


@pytest.fixture(scope="session")
def word_tokenizer():
    """A tokenizer of VOCAB whole words w0 ... and an unknown one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, word_tokenizer):
    """A tiny Llama on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    tiny("llama", max_position_embeddings=128).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text_file(tmp_path):
    """Ten documents of 30 words."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(f"w{3 + (7 * d + i * i) % 90}" for i in range(30)) for d in range(10)))
    return path
