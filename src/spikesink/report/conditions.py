"""Under which conditions a number was measured, as the end of a caption."""

from typing import Any

from spikesink.records import Provenance, Record


def conditions(record: Record) -> str:
    """Model, tokens, BOS, dtype and what the weights went through, in one sentence."""
    provenance: Provenance = record.provenance  # type: ignore[attr-defined]
    return sentence(provenance)


def sentence(provenance: Provenance) -> str:
    model, tokens = provenance.model, provenance.tokens
    parts = [name(model), shape(provenance), _bos(tokens), f"{model.get('dtype')}"]
    if tokens.get("chat_template"):
        parts.append("chat template")
    if model.get("gguf_quantisation"):
        parts.append(f"weights from {model['gguf_quantisation']}")
    return ", ".join(part for part in parts if part and part != "None") + "."


def name(model: dict[str, Any]) -> str:
    """The model's name as it was given; never empty."""
    return str(model.get("name") or model.get("model_type") or "model")


def shape(provenance: Provenance) -> str:
    """24 × 64 tokens of pydoc_data.topics: the sequences that were evaluated."""
    tokens, settings = provenance.tokens, provenance.settings
    sequences = settings.get("evaluated_sequences", tokens.get("sequences"))
    text = f"{sequences} × {tokens.get('seq_len')} tokens" if sequences else f"{tokens.get('seq_len')}-token sequences"
    return f"{text} of {tokens['source']}" if tokens.get("source") else text


def _bos(tokens: dict[str, Any]) -> str:
    if "bos_added" in tokens:
        return "with BOS" if tokens["bos_added"] else "no BOS added"
    return "with BOS" if tokens.get("bos") is True else ""
