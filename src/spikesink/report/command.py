"""Command lines that measure more of a model under the conditions of a record, and the places that these leave open."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spikesink.records import Provenance
from spikesink.report.conditions import EMBEDDED, name
from spikesink.report.document import Document, Statement

FIELD = re.compile(r"the (?:field|column) `(.+?)` of ")
"""How the description of a text names the field that holds it."""
DEFAULTS = {"field": "text", "seq_len": 64, "epsilon": 0.3, "metric": "sun2026", "dtype": "float32"}
"""What a command does where an option is left out."""
SEQUENCES = {
    "scan": (("--sequences", "sequences", 64),),
    "intervene": (("--sequences", "evaluated_sequences", 24), ("--held-out", "held_out_sequences", 16)),
}
"""By command: options, their names in a record, and what holds without them."""
Places = Mapping[str, Sequence[str]]
"""By a word that stands for a place in a command (RUN, MODEL, a file's name): the words to write for it."""


def command(verb: str, provenance: Provenance, *more: str) -> str:
    """`spikesink VERB` on the model of a record, under its conditions as far as it keeps them; more: further words."""
    words = [*_model(provenance.model), *_text(provenance, verb), *_criteria(provenance.settings, verb), *more]
    return shlex.join(["spikesink", verb, *words])


def _model(model: Mapping[str, Any]) -> list[str]:
    """A hub id; a folder's name alone does not say where it lies, the embedded model has none."""
    text, device = name(dict(model)), str(model.get("device") or "cpu")
    embedded = (text, model.get("gguf_quantisation")) == EMBEDDED
    words = [] if embedded else [text if "/" in text else "MODEL"]
    # On a GPU the default is the checkpoint's own.
    default = DEFAULTS["dtype"] if device.startswith("cpu") else None
    revision = (model.get("adapter") or model).get("revision")
    return [*words, *_option("--revision", revision), *_option("--dtype", model.get("dtype"), default)]


def _option(option: str, value: object, default: object = None) -> list[str]:
    return [] if value in (None, "", default) else [option, str(value)]


def _text(provenance: Provenance, verb: str) -> list[str]:
    """The text, how it became tokens, and how many, where the record says; a prompt it does not keep."""
    tokens, source = provenance.tokens, str(provenance.tokens.get("source"))
    if tokens.get("bos") == "as given":
        return ["--tokens", source, *_sequences(provenance, verb, of_ids=True)] if source.endswith(".npy") else []
    words = _option("--bos", tokens.get("bos") if tokens.get("bos") in ("always", "never") else None)
    words += ["--chat-template"] if tokens.get("chat_template") else []
    field = FIELD.match(str(tokens.get("source_description")))
    if source.startswith("hub:"):
        words = ["--dataset", source.removeprefix("hub:"), *words]
    elif tokens.get("source_sha256") and source not in ("prompt", "text", "texts", "pydoc_data.topics"):
        words = ["--text", source, *words]
    elif source != "pydoc_data.topics":
        return words
    words += _option("--field", field and field[1], DEFAULTS["field"]) + (["--pack"] if tokens.get("packed") else [])
    return [*words, *_option("--seq-len", tokens.get("seq_len"), DEFAULTS["seq_len"]), *_sequences(provenance, verb)]


def _sequences(provenance: Provenance, verb: str, *, of_ids: bool = False) -> list[str]:
    """How many sequences, where the record is of the same command: each counts them in its own way.

    of_ids: of a file of ids, of which all are taken by default.
    """
    known = {**provenance.tokens, **provenance.settings}
    if verb == "scan" and "evaluated_sequences" in known:
        return []
    options = SEQUENCES.get(verb, ())
    return [
        word
        for option, key, default in options
        for word in _option(option, known.get(key), None if of_ids else default)
    ]


def _criteria(settings: Mapping[str, Any], verb: str) -> list[str]:
    """What counts as a sink and as a spike, and how many sequences go through the model at once."""
    sinks = settings.get("sinks")
    sinks = sinks if isinstance(sinks, Mapping) else {}
    words = _option("--epsilon", sinks.get("epsilon"), DEFAULTS["epsilon"])
    words += _option("--sink-metric", sinks.get("metric"), DEFAULTS["metric"])
    words += _option("--magnitude", settings.get("magnitude") if verb == "intervene" else None)
    return words + _option("--batch-size", settings.get("batch_size"))


def filled(document: Document, places: Places) -> Document:
    """The document with these places in its commands; it is changed."""
    document.statements = [_said(statement, places) for statement in document.statements]
    document.next = document.next and _said(document.next, places)
    document.unmeasured = [replace(each, command=_line(each.command, places)) for each in document.unmeasured]
    return document


def _said(statement: Statement, places: Places) -> Statement:
    line = statement.command
    if line is None:
        return statement
    better = _line(line, places)
    points = tuple(point.replace(line, better) for point in statement.points)
    return replace(statement, text=statement.text.replace(line, better), points=points, command=better)


def _line(line: str, places: Places) -> str:
    """A command line with the words for its places, which may be the first part of a path: RUN/model."""
    program, verb, *words = shlex.split(line)
    made = [program, verb]
    for word in words:
        first, slash, rest = word.partition("/")
        if word in places:
            made += places[word]
        elif slash and first in places:
            made.append(f"{places[first][0]}/{rest}")
        else:
            made.append(word)
    return shlex.join(made)
