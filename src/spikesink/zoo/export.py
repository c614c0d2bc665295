"""Writing a decoder for programs that do not know spikesink: as a plain family, or with its own code beside it."""

import json
from pathlib import Path
from typing import Any

from spikesink.zoo.convert import to_hf
from spikesink.zoo.decoder import SpikesinkDecoderForCausalLM

AUTO_MAP = {
    "AutoConfig": "decoder.SpikesinkDecoderConfig",
    "AutoModelForCausalLM": "decoder.SpikesinkDecoderForCausalLM",
}
LEFT_OUT = {"__init__.py", "convert.py", "export.py", "graft.py"}


def export(
    decoder: SpikesinkDecoderForCausalLM, folder: Path | str, *, code: bool = False, tokenizer: Any | None = None
) -> Path:
    """Write a checkpoint that other programs read; returns the folder.

    Plain (Llama, OLMo 2, Qwen 3, Gemma 2) where the spec allows; raises UnsupportedModelError where it does not. With
    `code`, any spec: the zoo's source goes beside the weights and `auto_map` names it, to be run by
    `from_pretrained(..., trust_remote_code=True)`.
    """
    folder = Path(folder)
    if code:
        decoder.save_pretrained(folder)
        _add_code(folder)
    else:
        to_hf(decoder).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def _add_code(folder: Path) -> None:
    """Copy the zoo as one flat folder: what transformers' loader of such code can follow is relative imports."""
    here = Path(__file__).parent
    sources = [path for path in sorted(here.glob("*.py")) if path.name not in LEFT_OUT]
    for path in [*sources, here.parent / "errors.py"]:
        text = path.read_text(encoding="utf-8")
        text = text.replace("from spikesink.zoo.", "from .").replace("from spikesink.errors", "from .errors")
        (folder / path.name).write_text(text, encoding="utf-8")
    config = folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "auto_map": AUTO_MAP}, indent=2) + "\n", encoding="utf-8")
