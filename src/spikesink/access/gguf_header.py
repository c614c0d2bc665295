"""The header of a GGUF file, every count and size in it held against the file's own size.

The libraries that read GGUF trust the header: a count of 2^60 in a short file makes them loop until the memory is
gone. So it is walked here first, and refused where it cannot be true.
"""

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from spikesink.errors import ModelError

VERSIONS = (2, 3)
MAX_ITEMS = 5_000_000
"""Keys, strings and tensors in one header; the largest vocabularies and their merges have about a million."""
MAX_DIMENSIONS = 4
MAX_NESTING = 4
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""By GGUF value type, as `struct` has them."""
STRING, ARRAY = 8, 9
MAX_KEPT = 65_536
"""Items of an array, or bytes of a string, whose value is kept; what is longer is a vocabulary or a text."""

Value = int | float | bool | str | list | None
"""Of a key; None where it is too long to keep."""


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the header's table; the fastest dimension first, as ggml has it."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    """From where the data begins."""
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The metadata and the table of tensors of a GGUF file."""

    keys: dict[str, Value]
    tensors: tuple[GgufTensor, ...]

    @property
    def elements(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def quantisation(self) -> str:
        """The most frequent type among the matrices, e.g. `Q4_1`. Raises ModelError where there is none."""
        kinds = Counter(tensor.kind.name for tensor in self.tensors if len(tensor.shape) > 1)
        if not kinds:
            raise ModelError("The GGUF file holds no matrix, so no model; it is one of vocabulary alone, or truncated.")
        return kinds.most_common(1)[0][0]


def read_header(path: Path) -> GgufHeader:
    """Walk the header of a GGUF file. Raises ModelError, with the offset, for what cannot be."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"'{path}' does not begin like a GGUF file; it is truncated or something else.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Walk(path, content).header()
    except OSError as error:
        raise ModelError(f"The GGUF file '{path}' cannot be read: {error.strerror or error}.") from error


class _Walk:
    """Reads the values of a header in order, and refuses to read beyond the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.size = path, content, len(content)
        self.at = 4
        self.items = 0

    def header(self) -> GgufHeader:
        version = self.number("<I", "the version")
        if version not in VERSIONS:
            raise self.wrong(f"it has version {version}, expected {' or '.join(map(str, VERSIONS))} (little-endian)")
        tensors = self.count(self.number("<Q", "the number of tensors"), 24, "tensors")
        keys = self.count(self.number("<Q", "the number of keys"), 13, "keys")
        values = self.metadata(keys)
        table = [self.tensor() for _ in range(tensors)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 2**20:
            raise self.wrong(f"general.alignment is {str(alignment)[:100]}, expected a power of two")
        self.check_data(table, -(-self.at // alignment) * alignment, alignment)
        return GgufHeader(values, tuple(table))

    def metadata(self, keys: int) -> dict[str, Value]:
        """The keys and their values."""
        values: dict[str, Value] = {}
        for _ in range(keys):
            key = self.string("a key")
            if key in values:
                raise self.wrong(f"the key '{key[:100]}' comes twice")
            kind = self.number("<I", f"the type of '{key[:100]}'")
            values[key] = self.value(kind, f"the value of '{key[:100]}'")
        return values

    def value(self, kind: int, what: str, depth: int = 0) -> Value:
        if kind in SCALARS:
            return self.number("<" + SCALARS[kind], what)
        if kind == STRING:
            start = self.at + 8
            self.skip(self.number("<Q", what), what)
            return self.content[start : self.at].decode("utf-8", "replace") if self.at - start <= MAX_KEPT else None
        if kind != ARRAY or depth >= MAX_NESTING:
            raise self.wrong(f"{what} has type {kind}" + (", nested too deeply" if kind == ARRAY else ""))
        inner = self.number("<I", what)
        count = self.number("<Q", what)
        if inner in SCALARS:
            start, form = self.at, "<" + SCALARS[inner]
            self.skip(count * struct.calcsize(form), what)
            raw = self.content[start : self.at] if count <= MAX_KEPT else b""
            return [item for (item,) in struct.iter_unpack(form, raw)] if raw or not count else None
        items: list[Value] | None = [] if count <= MAX_KEPT else None
        for _ in range(self.count(count, 8, f"items in {what}")):
            item = self.value(inner, what, depth + 1)
            if items is not None:
                items.append(item)
        return items

    def tensor(self) -> GgufTensor:
        name = self.string("the name of a tensor")
        what = f"tensor '{name[:100]}'"
        dimensions = self.number("<I", what)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.wrong(f"{what} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(self.number("<Q", what) for _ in range(dimensions))
        kind = self.number("<I", what)
        offset = self.number("<Q", what)
        try:
            quantisation = GGMLQuantizationType(kind)
            block, width = GGML_QUANT_SIZES[quantisation]
        except (ValueError, KeyError):
            raise self.wrong(f"{what} has the unknown type {kind}") from None
        if 0 in shape or shape[0] % block:
            raise self.wrong(f"{what} has shape {shape}, which blocks of {block} do not fill")
        return GgufTensor(name, shape, quantisation, offset, math.prod(shape) // block * width)

    def check_data(self, table: list[GgufTensor], start: int, alignment: int) -> None:
        """Names are there once; no tensor ends past the file or shares its bytes with another."""
        if not table:
            raise self.wrong("it holds no tensors")
        twice = [name for name, count in Counter(tensor.name for tensor in table).items() if count > 1]
        if twice:
            raise self.wrong(f"the tensor '{twice[0][:100]}' comes twice")
        end = 0
        for tensor in sorted(table, key=lambda tensor: tensor.offset):
            what = f"tensor '{tensor.name[:100]}'"
            if tensor.offset % alignment or tensor.offset < end:
                raise self.wrong(f"{what} begins at {tensor.offset}, inside another or not aligned to {alignment}")
            end = tensor.offset + tensor.bytes
            if start + end > self.size:
                raise self.wrong(f"{what} ends at byte {start + end:,}, past the end of the file")

    def string(self, what: str) -> str:
        length = self.number("<Q", f"the length of {what}")
        start = self.at
        self.skip(length, what)
        try:
            return self.content[start : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8") from None

    def number(self, form: str, what: str) -> int:
        start = self.at
        self.skip(struct.calcsize(form), what)
        return struct.unpack_from(form, self.content, start)[0]

    def count(self, count: int, least_bytes: int, what: str) -> int:
        """A count that the rest of the file can hold, each item having at least so many bytes."""
        self.items += count
        if count * least_bytes > self.size - self.at or self.items > MAX_ITEMS:
            raise self.wrong(f"it names {count:,} {what}, more than a file of {self.size:,} bytes can hold")
        return count

    def skip(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise self.wrong(f"{what} would end past the end of the file")
        self.at += count

    def wrong(self, what: str) -> ModelError:
        return ModelError(
            f"The GGUF file '{self.path}' cannot be read: at byte {self.at:,}, {what}; truncated or corrupt, or no "
            "model. Download it again."
        )
