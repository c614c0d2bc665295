"""Text and token ids to measure on."""

from spikesink.data.corpus import Corpus, default_corpus, hub_corpus, prompt_corpus, read_corpus
from spikesink.data.tokenise import tokenise
from spikesink.data.tokens import Tokens, check_ids, load_token_ids

__all__ = [
    "Corpus",
    "Tokens",
    "check_ids",
    "default_corpus",
    "hub_corpus",
    "load_token_ids",
    "prompt_corpus",
    "read_corpus",
    "tokenise",
]
