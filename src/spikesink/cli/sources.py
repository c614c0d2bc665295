"""From the options of a command to token ids."""

from spikesink.access import AccessedModel
from spikesink.cli.options import Text
from spikesink.data.corpus import Corpus, default_corpus, hub_corpus, prompt_corpus, read_corpus
from spikesink.data.tokens import Tokens, load_token_ids, tokenise
from spikesink.errors import InputError


def read_tokens(source: Text, accessed: AccessedModel, sequences: int, prompt: str | None = None) -> Tokens:
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
        _corpus(source, prompt),
        accessed.tokenizer,
        seq_len=source.seq_len,
        sequences=sequences,
        bos=source.bos,
        pack=source.pack,
        chat_template=source.chat_template,
    )


def _corpus(source: Text, prompt: str | None) -> Corpus:
    if prompt is not None:
        return prompt_corpus(prompt)
    if source.text is not None:
        return read_corpus(source.text, source.field)
    return hub_corpus(source.dataset, source.field) if source.dataset is not None else default_corpus()


def _check_positions(source: Text, accessed: AccessedModel) -> None:
    limit = accessed.max_positions
    if limit is not None and source.seq_len > limit:
        raise InputError(f"--seq-len {source.seq_len} is beyond the model's {limit} positions; use at most {limit}.")
