"""Bigram-backcopy: the smallest task known to make sinks and spikes. Guo et al. 2024 (arXiv 2410.13835), section 3.

A chain of characters with the bigram statistics of some text, except that after a trigger character the one *before*
the trigger is copied. A head that copies has nothing to do at other tokens, and parks its attention on the first.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

import numpy as np

from spikesink.data.corpus import Corpus, default_corpus
from spikesink.data.restarts import check_restarts, restart_places
from spikesink.errors import InputError

BOS = "<bos>"


@dataclass(frozen=True)
class BigramBackcopy:
    """The chain: token 0 is BOS, the others are characters, the most frequent first.

    `next_token[v]` is P(. | v) of shape (vocabulary, vocabulary); BOS never follows, and row 0 is the first
    character's distribution, without triggers: a trigger right after BOS would have nothing to copy.
    """

    tokens: tuple[str, ...]
    triggers: frozenset[int]
    next_token: np.ndarray
    source: str
    source_sha256: str

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def sha256(self) -> str:
        """Over the transition probabilities and triggers, hence over everything the samples depend on but the seed."""
        digest = hashlib.sha256(np.ascontiguousarray(self.next_token, dtype="<f8").tobytes())
        digest.update(repr((self.tokens, sorted(self.triggers))).encode())
        return digest.hexdigest()

    def conditional_entropy_nats(self) -> np.ndarray:
        """Entropy of the next token given the current one, (vocabulary,): 0 at triggers, which are followed by a copy.

        Averaged over the current tokens of samples, this is the smallest loss any model can reach.
        """
        probabilities = np.where(self.next_token > 0, self.next_token, 1.0)
        entropy = -(probabilities * np.log(probabilities)).sum(1)
        entropy[sorted(self.triggers)] = 0.0
        return entropy


class BigramSampler:
    """Samples by index: sample i of a stream depends on (seed, stream, i) alone, in whatever order they are asked."""

    def __init__(
        self, chain: BigramBackcopy, seq_len: int, *, bos: bool, seed: int, stream: int = 0, restarts: int = 0
    ) -> None:
        """restarts: places behind the second token where the chain starts again with BOS. Raises InputError."""
        if seq_len < 3:
            raise InputError(f"seq_len is {seq_len}; expected at least 3, so that something can be copied.")
        check_restarts(restarts, seq_len, bos=bos)
        self.chain, self.seq_len, self.bos, self.restarts = chain, seq_len, bos, restarts
        self.seed, self.stream = seed, stream
        # Plain lists: one sample is some dozens of look-ups, far cheaper without an array call for each.
        self._cumulative = [row.tolist() for row in chain.next_token.cumsum(1)]

    def sample(self, index: int) -> np.ndarray:
        """Token ids of shape (seq_len,), int64; with BOS it is the first of them."""
        length = self.seq_len if self.bos else self.seq_len + 1
        rng = np.random.default_rng([self.seed, self.stream, index])
        draws = rng.random(length).tolist()
        again = set(restart_places(rng, length, self.restarts))
        triggers, cumulative, last = self.chain.triggers, self._cumulative, self.chain.vocab_size - 1
        ids = [0]
        for place, draw in enumerate(draws[1:], start=1):
            current = ids[-1]
            if place in again:
                ids.append(0)
            elif current in triggers:
                ids.append(ids[-2])
            else:
                # Rounding may leave the last sum a hair below 1.
                ids.append(min(bisect_right(cumulative[current], draw), last))
        return np.array(ids if self.bos else ids[1:], dtype=np.int64)


def bigram_backcopy(vocab_size: int = 64, triggers: int = 3, corpus: Corpus | None = None) -> BigramBackcopy:
    """The chain of the most frequent characters of a corpus (the embedded English unless given).

    `triggers`: how many of the most frequent characters are triggers; Guo et al. use three. Raises InputError where
    the text has too few characters.
    """
    corpus = corpus or default_corpus()
    if not 0 < triggers < vocab_size - 2:
        raise InputError(f"{triggers} triggers in a vocabulary of {vocab_size}; expected at least 1 and 2 others.")
    text = "\n".join(corpus.documents())
    common = [character for character, _ in sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))]
    if len(common) < vocab_size - 1:
        raise InputError(
            f"'{corpus.name}' has {len(common)} distinct characters; a vocabulary of {vocab_size} needs "
            f"{vocab_size - 1}. Lower model.vocab_size, or give a longer text."
        )
    tokens = (BOS, *common[: vocab_size - 1])
    counts = _bigram_counts(text, tokens)
    chosen = frozenset(range(1, triggers + 1))
    first = counts.sum(0)
    first[sorted(chosen)] = 0
    counts[0] = first
    sha256 = corpus.sha256 or hashlib.sha256(text.encode()).hexdigest()
    return BigramBackcopy(tokens, chosen, counts / counts.sum(1, keepdims=True), corpus.name, sha256)


def _bigram_counts(text: str, tokens: tuple[str, ...]) -> np.ndarray:
    """Counts (vocabulary, vocabulary) of neighbours that are both in the vocabulary; BOS has none.

    One is added for each pair of characters, so that no row is empty.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    table = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    for index, token in enumerate(tokens[1:], start=1):
        table[ord(token)] = index
    ids = table[codes]
    left, right = ids[:-1], ids[1:]
    both = (left > 0) & (right > 0)
    size = len(tokens)
    counts = np.bincount(left[both] * size + right[both], minlength=size * size).reshape(size, size).astype(float)
    counts[1:, 1:] += 1
    return counts
