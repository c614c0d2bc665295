"""From one text to token ids under a BOS policy, whatever the tokenizer adds by itself."""

from collections.abc import Iterator
from typing import Any

from spikesink.data.chat_template import ChatTemplate
from spikesink.data.corpus import Corpus
from spikesink.data.files import Conversation, Document
from spikesink.errors import InputError, did_you_mean, short
from spikesink.limits import panics_raised

BOS_POLICIES = ("auto", "always", "never")
PROBES = ("a", "the", "1", ".", "\n")
"""Texts to see what a tokenizer puts before any text; several, since a small vocabulary may not know one of them."""
CHARACTERS_PER_TOKEN = 64
"""First guess of how much text holds the tokens needed; English has about four characters a token."""
MIN_CHARACTERS = 8192
SEAM_TOKENS = 32
"""Tokens this near to where a text was cut may differ from those of the whole text."""


class Encoder:
    """Text to ids under one BOS policy: `prefix` + `body(text)` is a sequence; never a doubled BOS or an added EOS.

    `bos`: auto = what the tokenizer does by itself (with a chat template: what the template writes), always = exactly
    one BOS, never = none. Raises InputError for an unknown policy, a missing BOS token and a missing chat template.
    """

    def __init__(self, tokenizer: Any, bos: str, chat_template: bool) -> None:
        if bos not in BOS_POLICIES:
            raise InputError(f"Unknown BOS policy '{bos}'{did_you_mean(bos, BOS_POLICIES)}")
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        if bos == "always" and self.bos_id is None:
            raise InputError("--bos always was asked for, but the tokenizer has no BOS token; use --bos auto or never.")
        if chat_template and not tokenizer.chat_template:
            raise InputError(
                "The tokenizer has no chat template, which conversations and --chat-template need. Give plain text "
                "(--field NAME for a field that holds it), without --chat-template."
            )
        self._tokenizer = tokenizer
        self._template = _template(tokenizer) if chat_template else None
        if self._template is not None and self._rendered("a") == self._rendered("b"):
            raise InputError(
                "The tokenizer's chat template does not write what the user says: every sequence would be the same "
                "text of its own. Give plain text without --chat-template, or a tokenizer whose template takes it."
            )
        self._keep_own_bos = bos == "auto"
        self.prefix: list[int] = self._default_prefix() if bos == "auto" else []
        """Ids that begin every sequence."""
        if bos == "always" and self.bos_id is not None:
            self.prefix = [self.bos_id]

    def documents(self, corpus: Corpus) -> Iterator[Document]:
        """What of a corpus can be encoded: conversations only with a chat template. Raises InputError for others."""
        return corpus.texts_and_conversations() if self._template is not None else corpus.documents()

    def body(self, document: Document, enough: int | None = None) -> list[int]:
        """Ids of a text or conversation without the prefix; of a long one the first `enough`, from its beginning."""
        text = self._rendered(document)
        if enough is not None:
            length = max(CHARACTERS_PER_TOKEN * enough, MIN_CHARACTERS)
            while length < len(text):
                ids = self._one_bos(self._ids(text[:length]))
                if len(ids) >= enough + SEAM_TOKENS:
                    return ids[:enough]
                length *= 4
        return self._one_bos(self._ids(text))

    def _default_prefix(self) -> list[int]:
        """What the tokenizer puts before any text: BOS, several special tokens (GLM), or nothing."""
        if self._template is not None:
            full = self._ids(self._rendered(PROBES[0]))
        else:
            for probe in PROBES:
                plain, full = self._ids(probe), self._ids(probe, special=True)
                for start in range(len(full) - len(plain) + 1) if plain else ():
                    if full[start : start + len(plain)] == plain:
                        return full[:start]
            full = self._ids(PROBES[0], special=True)
        return [self.bos_id] if self.bos_id is not None and full[:1] == [self.bos_id] else []

    def _one_bos(self, ids: list[int]) -> list[int]:
        """Drop BOS tokens that the text itself begins with, as far as they would double one or are not wanted."""
        own = 0
        while self.bos_id is not None and own < len(ids) and ids[own] == self.bos_id:
            own += 1
        keep = 1 if own and self._keep_own_bos and self.bos_id not in self.prefix else 0
        return ids[own - keep :]

    def _rendered(self, document: Document) -> str:
        if self._template is None:
            assert isinstance(document, str), "conversations need a template"
            return document
        talk = Conversation([{"role": "user", "content": document}]) if isinstance(document, str) else document
        try:
            # Where the assistant has spoken last, nothing more is asked of it.
            prompt = not talk.messages or talk.messages[-1]["role"] != "assistant"
            return self._template.render(talk.messages, talk.tools, prompt=prompt)
        except Exception as error:
            what = "a user's message" if isinstance(document, str) else "a conversation"
            raise InputError(
                f"The tokenizer's chat template cannot take {what} ({short(error)}). Give plain text, without "
                "--chat-template."
            ) from error

    def _ids(self, text: str, special: bool = False) -> list[int]:
        try:
            # No warning about the tokenizer's own length limit: sequences are cut, and the model's limit is checked.
            with panics_raised():
                return list(self._tokenizer(text, add_special_tokens=special, verbose=False).input_ids)
        except Exception as error:
            start = repr(text[:40])
            raise InputError(
                f"The tokenizer cannot encode the text that begins {start} ({short(error)}); check that the tokenizer "
                "belongs to the model, or give ids: --tokens IDS.npy."
            ) from error


def _template(tokenizer: Any) -> ChatTemplate:
    try:
        return ChatTemplate(tokenizer)
    except ValueError as error:
        raise InputError(
            f"The tokenizer's chat template cannot be chosen ({short(error)}). Give a tokenizer with one template, or "
            "plain text without --chat-template."
        ) from error
