"""Hypothesis strategies for hostile files: a good file bent in one or a few places, and the usual poison."""

import json
import os
import pickle
import struct
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

EDGES = (0, 1, 2, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
"""Counts, sizes and offsets at which arithmetic goes wrong."""
POISON: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**70, -(2**70), 0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf"),
    "", "x", "x" * 5_000, "../../../etc/passwd", "/dev/zero", "\x00", "\x1b[31mred", "\ud800", "[bold]", "nan", "1e400",
    [], [[]], [None], [1, "a"], {}, {"": {}}, {"kind": "none"}, {"__class__": "x"}, [[[[[[[[[[]]]]]]]]]],
)  # fmt: skip


_poison = st.sampled_from(POISON).map(deepcopy)
"""A copy each time: what is put into a tree may be bent further."""


@st.composite
def bent_bytes(draw: st.DrawFn, good: bytes, header: int | None = None) -> bytes:
    """A file cut, overwritten, lengthened or repeated in one to four places, mostly within its first `header` bytes."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        size = len(content)
        last = min(size, header or size) if draw(st.integers(0, 4)) else size
        at = draw(st.integers(0, max(0, last - 1)))
        change = draw(st.sampled_from(("cut", "byte", "word", "long", "insert", "delete", "repeat")))
        if change == "cut":
            del content[at:]
        elif change == "byte":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=3))
        elif change == "word":
            content[at : at + 4] = struct.pack("<I", draw(st.sampled_from(EDGES)) % 2**32)
        elif change == "long":
            content[at : at + 8] = struct.pack("<Q", draw(st.sampled_from(EDGES)))
        elif change == "insert":
            content[at:at] = draw(st.binary(max_size=40))
        elif change == "delete":
            del content[at : at + draw(st.integers(1, 64))]
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 256))]
    return bytes(content)


def paths(tree: Any, above: tuple = ()) -> list[tuple]:
    """Every place in a JSON tree, the root among them."""
    every = [above]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        every += paths(value, (*above, key))
    return every


@st.composite
def bent_tree(draw: st.DrawFn, good: Any) -> Any:
    """A JSON tree with poison, a missing, an unknown or a misplaced part in one to three places."""
    tree = deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(paths(tree)))
        if not where:
            continue
        here = tree
        for key in where[:-1]:
            here = here[key]
        change = draw(st.sampled_from(("poison", "poison", "poison", "drop", "add", "other")))
        if change == "drop":
            del here[where[-1]]
        elif change == "add" and isinstance(here, dict):
            name = draw(st.sampled_from(("unknown", "", "kind", "model_dump", "__class__", "schema_version")))
            here[name] = draw(_poison)
        elif change == "other":
            other = tree
            for key in draw(st.sampled_from(paths(tree))):
                other = other[key]
            here[where[-1]] = deepcopy(other)
        else:
            here[where[-1]] = draw(_poison)
    return tree


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", errors="surrogatepass")


@st.composite
def bent_safetensors(draw: st.DrawFn, good: bytes) -> bytes:
    """Bent bytes, or a header whose tree is bent and whose length is right."""
    (length,) = struct.unpack_from("<Q", good)
    header = json.loads(good[8 : 8 + length])
    if draw(st.booleans()):
        return draw(bent_bytes(good, header=8 + length))
    for name, entry in list(header.items()):
        if name != "__metadata__" and not draw(st.integers(0, 3)):
            entry[draw(st.sampled_from(("data_offsets", "shape")))] = [
                draw(st.sampled_from(EDGES)) for _ in range(draw(st.integers(0, 5)))
            ]
            entry["dtype"] = draw(st.sampled_from((entry["dtype"], "BF16", "F8_E4M3", "F4", "BOOL", "U64", "C64")))
    text = json.dumps(draw(bent_tree(header)) if draw(st.booleans()) else header)
    if draw(st.booleans()) and len(header) > 1:
        # The same name twice, which a JSON object may have as text.
        name = next(iter(header))
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    content = text.encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(content)) + content + good[8 + length :]


NPY_TYPES = (
    "<i8",
    "<i4",
    "<u2",
    "|i1",
    ">i4",
    "<u8",
    "<f4",
    "<c8",
    "|b1",
    "|O",
    "<U3",
    "|S0",
    "|V8",
    "<M8[s]",
    "i8,i8",
)


class _Payload:
    """Unpickling it runs a command."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


PICKLE = pickle.dumps(_Payload())


@st.composite
def npy_file(draw: st.DrawFn) -> bytes:
    """A header that claims any type and shape, in front of any number of bytes."""
    shape = draw(
        st.one_of(
            st.sampled_from(((2, 5), (1, 2), (3, 64))),
            st.lists(st.sampled_from((*EDGES, -1, -5)), max_size=4).map(tuple),
        )
    )
    kind = draw(st.sampled_from(NPY_TYPES))
    header = f"{{'descr': {kind!r}, 'fortran_order': {draw(st.booleans())}, 'shape': {shape}, }}"
    if not draw(st.integers(0, 4)):
        code = "__import__('os').system('touch executed')"
        deep = "{'descr': " + "(" * 90 + ")" * 90 + "}"
        more = header.replace("}", ", 'x': 1}")
        header = draw(st.sampled_from((more, "[" * 200, "{}", code, header * 900, deep, "")))
    text = header.encode("latin1", errors="replace")
    version = draw(st.sampled_from((1, 2, 3, 9)))
    size = struct.pack("<H", len(text) % 2**16) if version == 1 else struct.pack("<I", len(text))
    data = draw(st.sampled_from((b"", bytes(80), bytes(1536), PICKLE))) + draw(st.binary(max_size=8))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


YAML_POISON = (
    '!!python/object/apply:os.system ["touch executed"]',
    'model: !!python/name:os.system ""',
    "name: &a [x]\nmodel: *a",
    "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nname: [*b,*b,*b,*b]",
    *("[" * 3_000, "{a: " * 3_000, "- " * 3_000, "x" * 200_000, "training: {steps: " + "9" * 5_000 + "}"),
    *("data: 2001-99-99", "!!timestamp x", "!!bool x", "!!int ''", "!!binary '%'", "!!float x", "!!set {a, b}"),
    *("training: {steps: 1, steps: 2}", "? [a]\n: b", "? {a: b}\n: c", "name: 1:2:3:4:5:6:7:8:9:10"),
    *("%YAML 9.9\n---\na", "--- a\n--- b", "a: b: c", "\ttab: 1", "'", "!<tag:x> y", "1: 2", "~"),
    *("<<: {model: {norm: dyt}}", "training: {<<: 5}", "optimiser: {lr: .inf}", "optimiser: {lr: .nan}"),
    *(
        "name: \U0001f600",
        "model: {d_model: 1e30}",
        "model: {n_layers: 1000000000}",
        "model: {n_heads: 9999999999999999}",
    ),
)
yaml_text = st.one_of(st.sampled_from(YAML_POISON), st.text(max_size=200))

TEMPLATES = (
    "{{ cycler.__init__.__globals__.os.popen('touch executed').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% set b = messages | tojson %}{{ b * 1000 }}{% endfor %}",
    *("{{ 'x' * 10000000000 }}", "{{ [0] * 10000000000 }}", "{{ '%1000000000d' % 1 }}"),
    *("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}", "{% include '/etc/passwd' %}", "{{ messages.pop() }}"),
    *("{{ raise_exception('no') }}", "{{ messages[99].content }}", "{{ nothing.at.all }}", "{% if %}", "{{", "{#", ""),
    *("{{ bos_token * 5 }}{{ messages[0].content }}", "{{ messages[0]['content'].__class__ }}", "\x00", "{{ 1 / 0 }}"),
    *("{{ strftime_now('%Y' * 100000) }}", "{{ messages | map(attribute='__class__') | list }}", "{{ lipsum(10**9) }}"),
)
GOOD_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
chat_template = st.one_of(
    st.sampled_from(TEMPLATES),
    st.lists(st.sampled_from((*TEMPLATES, GOOD_TEMPLATE)), min_size=2, max_size=3).map("".join),
    bent_bytes(GOOD_TEMPLATE.encode()).map(lambda content: content.decode("utf-8", errors="replace")),
)
"""A chat template is a program in Jinja's sandbox."""
