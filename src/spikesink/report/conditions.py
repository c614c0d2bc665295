"""Under which conditions a number was measured: in a sentence, in a line, and every field as a table."""

from collections.abc import Sequence
from typing import Any

from spikesink.records import Anatomy, Provenance, Timing
from spikesink.records.interventions import Interventions
from spikesink.report.document import Statement, Table
from spikesink.report.format import listed

EMBEDDED = ("SmolLM2-135M-Instruct", "Q4_1")
"""What records call the embedded model, and what its weights come from."""


def sentence(provenance: Provenance) -> str:
    """Model, tokens, BOS, dtype and what the weights went through, in one sentence."""
    model, tokens = provenance.model, provenance.tokens
    parts = [name(model), shape(provenance), _bos(tokens), f"{model.get('dtype')}"]
    if tokens.get("chat_template"):
        parts.append("chat template")
    if provenance.settings.get("precision"):
        parts.append(f"trained in {provenance.settings['precision']}")
    quantised = model.get("gguf_quantisation") or model.get("dequantised_from")
    if quantised:
        parts.append(f"weights from {quantised}")
    return ", ".join(part for part in parts if part and part != "None") + "."


def name(model: dict[str, Any]) -> str:
    """The model's name as it was given; never empty."""
    return str(model.get("name") or model.get("model_type") or "model")


def shape(provenance: Provenance) -> str:
    """24 × 64 tokens of pydoc_data.topics: the sequences that were evaluated."""
    tokens, settings = provenance.tokens, provenance.settings
    if isinstance(tokens.get("source"), dict):
        # A study's are those of its recipe.
        data = tokens["source"]
        tokens = {"seq_len": data.get("seq_len"), "source": (data.get("source") or {}).get("kind")}
    sequences = settings.get("evaluated_sequences", tokens.get("sequences"))
    text = f"{sequences} × {tokens.get('seq_len')} tokens" if sequences else f"{tokens.get('seq_len')}-token sequences"
    return f"{text} of {tokens['source']}" if tokens.get("source") else text


def _bos(tokens: dict[str, Any]) -> str:
    begin, sequences = tokens.get("begin_with_bos"), tokens.get("sequences")
    if tokens.get("bos") == "as given" and begin is not None and sequences:
        return f"{'all' if begin == sequences else 'none' if begin == 0 else f'{begin} of {sequences}'} begin with BOS"
    if "bos_added" in tokens:
        return "with BOS" if tokens["bos_added"] else "no BOS added"
    return "with BOS" if tokens.get("bos") is True else ""


CONDITIONS = {"source_sha256": "text", "sequences": "sequences", "seq_len": "sequence length", "bos_added": "BOS",
              "chat_template": "chat template", "packed": "packing", "ids_sha256": "token ids"}  # fmt: skip
COUNTED = ("sequences", "ids_sha256")
"""Of these, what differs between a scan and interventions by default."""


def mind(records: Sequence[Any]) -> list[Statement]:
    """Under which conditions these scans and interventions were not all made; nothing where they were."""
    made = [record for record in records if isinstance(record, Anatomy | Interventions)]
    differing = [label for key, label in CONDITIONS.items() if _differs(made, key)]
    for label, where, key in (("dtype", "model", "dtype"), ("sink criteria", "settings", "sinks")):
        known = {str(getattr(record.provenance, where).get(key)) for record in made}
        differing += [label] if len(known) > 1 else []
    if not differing:
        return []
    text = f"These conditions differ, so numbers may differ for that reason alone: {listed(differing)}."
    return [Statement("Mind", text)]


def _differs(records: Sequence[Anatomy | Interventions], key: str) -> bool:
    """Whether a condition of the tokens is not the same in all; of those in COUNTED, in all of a kind."""
    by_kind: dict[object, set[str]] = {}
    for record in records:
        kind = type(record) if key in COUNTED else None
        by_kind.setdefault(kind, set()).add(str(record.provenance.tokens.get(key)))
    return any(len(known) > 1 for known in by_kind.values())


def line(record: Any) -> str:
    """The conditions for a terminal: the sentence, what was held out, and how long it took."""
    provenance: Provenance = record.provenance
    timing: Timing = record.timing
    parts = [sentence(provenance).removesuffix(".")]
    held_out = provenance.settings.get("held_out_sequences")
    if held_out is not None:
        parts.append(f"constants from {held_out} other sequences")
    if provenance.model.get("device"):
        parts.append(f"on {provenance.model['device']}")
    spent = [f"{what} {seconds:.0f}" for what, seconds in (("load", timing.load_s), ("forward", timing.forward_s))
             if seconds]  # fmt: skip
    return "; ".join(parts) + f"; {timing.total_s:.0f} s" + (f" ({', '.join(spent)})" if spent else "")


def condition_table(record: Any) -> Table:
    """Every condition of a record, with when and how long; one a row, nested names joined by dots."""
    content = {**record.provenance.model_dump(mode="json"), "timing": record.timing.model_dump(mode="json")}
    return Table("Conditions", ("condition", "value"), [[key, value] for key, value in _flat(content)], words=2)


def _flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(content, dict):
        return [
            pair for key, value in content.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, ", ".join(map(str, content)) if isinstance(content, list) else str(content))]
