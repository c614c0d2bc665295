"""From documents to token ids (sequence, token), and from a file of ids; how they were made travels with them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from spikesink.data.files import check_file, checked_sha256
from spikesink.errors import InputError, short

ZIP = b"PK"
"""How an archive begins (.npz, a file of torch.save), which numpy tells apart."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids, int64 of shape (sequence, token), and the conditions they were made under."""

    ids: np.ndarray
    source: str = "ids"
    source_sha256: str | None = None
    source_description: str = "token ids as given"
    bos: str = "as given"
    bos_added: bool | None = None
    """Whether every sequence begins with the tokenizer's BOS; None where ids were given."""
    packed: bool = False
    chat_template: bool = False
    skipped_short: int = 0
    """Documents read that had fewer than seq_len tokens."""
    documents: int = 0
    """Documents read, the skipped ones among them."""

    @classmethod
    def from_ids(cls, ids: np.ndarray, source: str = "ids", source_sha256: str | None = None) -> "Tokens":
        """Ids evaluated exactly as given. Raises InputError unless integers >= 0 of shape (sequence, token)."""
        if ids.dtype.kind in "US" or (ids.dtype.kind == "O" and isinstance(next(iter(ids.flat), None), str)):
            raise InputError(
                "Got text as token ids; expected integers of shape (sequence, token). Texts go in by name: "
                "scan(model, text=..., tokenizer=...); or spikesink.data.tokenise makes sequences of one length."
            )
        if ids.dtype.kind not in "iu":
            raise InputError(f"Token ids have type {ids.dtype}; expected integers. Convert them: ids.astype('int64').")
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise InputError(
                f"Token ids have shape {ids.shape}; expected (sequences, seq_len) with at least 1 sequence of at "
                f"least 2 tokens.{' For one sequence use ids[None, :].' if ids.ndim == 1 else ''}"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high > np.iinfo(np.int64).max:
            raise InputError(
                f"Token ids go from {low} to {high}; expected 0 and up, within the vocabulary. Padding such as -100 "
                "must be cut off: every sequence counts whole."
            )
        return cls(ids=ids.astype(np.int64, order="C"), source=source, source_sha256=source_sha256)

    def provenance(self, bos_id: int | None = None) -> dict[str, Any]:
        """What a record says about its tokens; `ids_sha256` is over the ids as little-endian int64, row by row.

        bos_id: the model's BOS; of ids that were given, how many sequences begin with it is then said.
        """
        given = self.bos == "as given" and bos_id is not None
        return {
            **({"begin_with_bos": int((self.ids[:, 0] == bos_id).sum())} if given else {}),
            "source": self.source,
            "source_sha256": self.source_sha256,
            "source_description": self.source_description,
            "ids_sha256": hashlib.sha256(np.ascontiguousarray(self.ids, dtype="<i8").data).hexdigest(),
            "sequences": int(self.ids.shape[0]),
            "seq_len": int(self.ids.shape[1]),
            "bos": self.bos,
            "bos_added": self.bos_added,
            "packed": self.packed,
            "chat_template": self.chat_template,
            "skipped_short": self.skipped_short,
            "documents": self.documents,
        }


def as_tokens(tokens: Any) -> Tokens:
    """Tokens as they are, or ids (sequence, token) as an array, a tensor, lists, or what a tokenizer returns.

    Raises InputError for anything else, and where a tokenizer's attention mask marks padding.
    """
    given, valid = as_tokens_and_valid(tokens, None)
    if valid is not None:
        raise InputError("The token ids are padded, by their attention_mask; expected sequences of one length here.")
    return given


def as_tokens_and_valid(tokens: Any, valid: Any) -> tuple[Tokens, np.ndarray | None]:
    """Tokens as `as_tokens` has them, and which of them are real (see `as_valid`), None where all are.

    Of what a tokenizer returns, the attention mask counts unless `valid` is given. Raises InputError.
    """
    if isinstance(tokens, Mapping):
        if "input_ids" not in tokens:
            raise InputError(f"Got a mapping with {', '.join(map(str, tokens))[:200]}; expected input_ids in it.")
        valid = tokens.get("attention_mask") if valid is None else valid
        tokens = tokens["input_ids"]
    given = tokens if isinstance(tokens, Tokens) else Tokens.from_ids(as_array(tokens, "Token ids"))
    mask = None if valid is None else as_valid(valid, given.ids.shape)
    return given, None if mask is None or mask.all() else mask


def as_valid(valid: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which tokens are real, bool (sequence, token), from booleans or an attention mask of 0 and 1.

    Raises InputError for another shape, for other numbers, and for a sequence that is all padding.
    """
    mask = as_array(valid, "valid")
    if mask.shape != shape:
        raise InputError(f"valid has shape {mask.shape}; expected that of the token ids, {shape}.")
    if mask.dtype.kind not in "biuf" or not bool(np.isin(mask, (0, 1)).all()):
        raise InputError(f"valid ({mask.dtype}) has other values than 0 and 1; expected True where no padding is.")
    mask = np.require(mask.astype(bool), requirements=["C", "W"])
    empty = np.flatnonzero(~mask.any(1))
    if len(empty):
        raise InputError(f"valid leaves no token of sequence {empty[0]}; leave the sequence out.")
    return mask


def as_array(values: Any, what: str) -> np.ndarray:
    """Whatever holds numbers, tensors on any device included, as an array."""
    values = values.detach().cpu() if hasattr(values, "detach") else values
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{what} {_lengths(values) or short(error)}; expected rows of one length.") from error


def _lengths(rows: Any) -> str | None:
    """How long the rows of a nested list are; None for what is none."""
    lengths = sorted({len(row) for row in rows if hasattr(row, "__len__")}) if isinstance(rows, list | tuple) else []
    return f"have rows of {lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else None


def load_token_ids(path: Path | str, sequences: int | None = None) -> Tokens:
    """The ids of an .npy file, an integer array (sequences, seq_len), or its first `sequences`. Raises InputError."""
    path = Path(path)
    check_file(path, "token file (.npy)")
    try:
        _check_header(path)
        # Mapped, not read: a header that lies about its size then costs no memory.
        ids = np.load(path, allow_pickle=False, mmap_mode="r")
    # numpy evaluates the header as Python, so that a corrupt one can raise almost anything.
    except Exception as error:
        raise InputError(
            f"'{path}' is no .npy array of integers ({short(error)}); write an integer array (sequences, seq_len) with "
            "numpy.save."
        ) from error
    if not isinstance(ids, np.ndarray):
        kind = "a file of torch.save" if any(name.endswith("data.pkl") for name in ids.files) else "an archive (.npz)"
        ids.close()
        raise InputError(f"'{path}' is {kind}, not one array; write the array of ids with numpy.save.")
    ids = ids[:sequences] if ids.ndim == 2 else ids
    # Asked before the first id is read: a file with holes may claim more than the disk has.
    if max(8 * ids.size, path.stat().st_size) > psutil.virtual_memory().available:
        raise InputError(f"'{path}' holds {ids.shape} ids, more than fit in memory; give fewer sequences.")
    try:
        return Tokens.from_ids(np.asarray(ids), path.name, checked_sha256(path))
    except InputError as error:
        raise InputError(f"'{path}': {error}") from None


def _check_header(path: Path) -> None:
    """Refuse what numpy must not be asked to map: `|S0` of shape -1, say, ends the process. Raises ValueError."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with path.open("rb") as file:
        start = file.read(len(np.lib.format.MAGIC_PREFIX))
        if start[: len(ZIP)] == ZIP:
            return
        if start != np.lib.format.MAGIC_PREFIX:
            raise ValueError("it does not begin as one; texts are read by --text, in Python by spikesink.data.tokenise")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"format version {version[0]}.{version[1]}, which integers do not need")
        shape, _, dtype = readers[version](file)
    if dtype.kind not in "iu":
        raise ValueError(f"it holds {dtype}")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape}")


def check_ids(tokens: Tokens, vocab_size: int, max_positions: int | None) -> None:
    """Raise InputError for ids outside the vocabulary and sequences longer than the model's positions."""
    low, high = int(tokens.ids.min()), int(tokens.ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        sequence, position = (int(axis[0]) for axis in np.nonzero(tokens.ids == wrong))
        raise InputError(
            f"Token id {wrong} (sequence {sequence}, position {position}) is outside the model's vocabulary of "
            f"{vocab_size} (0 to {vocab_size - 1}); use ids of this model's own tokenizer."
        )
    if max_positions is not None and tokens.ids.shape[1] > max_positions:
        raise InputError(
            f"Sequences of {tokens.ids.shape[1]} tokens are beyond the model's {max_positions} positions; use at most "
            f"{max_positions} tokens (seq_len, --seq-len), or a shorter prompt."
        )
