"""What models without spikes and sinks show, beside one that has both: the figures behind the verdict's thresholds.

Run: make controls. Prints a markdown table: random initialisations of several families and sizes, a small Llama after
a few steps, and the embedded SmolLM2. With arguments, NAME and folders of scans, the row of those alone.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from control_models import SMALL, byte_sequences, random_model, trained_model

from spikesink import load, scan
from spikesink.access import AccessedModel, access
from spikesink.data import default_corpus, tokenise
from spikesink.records import Anatomy

SEEDS = 3
STEPS = 100
SEQUENCES, TOKENS = 16, 64
WIDE = {**SMALL, "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 8}
FAMILIES = {
    "llama, d 96, 3 layers": ("llama", SMALL),
    "llama, d 1024, 8 layers": ("llama", WIDE),
    "gemma2, d 96, 3 layers": ("gemma2", {**SMALL, "head_dim": 24}),
    "gpt_neox, d 96, 3 layers": ("gpt_neox", {**SMALL, "num_key_value_heads": None}),
    "gpt2, d 768, 12 layers": ("gpt2", {"vocab_size": 256, "n_positions": 256}),
}


def records() -> Iterator[tuple[str, list[Anatomy]]]:
    """(What was scanned, one record a seed)."""
    for name, (family, options) in FAMILIES.items():
        yield f"random {name}", [bytes_scan(access(random_model(family, s, **options)), s) for s in range(SEEDS)]
    embedded = load()
    config = AutoConfig.from_pretrained(embedded.path)
    options = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    yield (
        "random SmolLM2-135M shape",
        [token_scan(access(random_model("llama", s, **options)), s) for s in range(SEEDS)],
    )
    models = [trained_model(STEPS, s)[0] for s in range(SEEDS)]
    yield f"llama, d 96, {STEPS} steps on bytes", [bytes_scan(access(m), s) for s, m in enumerate(models)]
    text = tokenise(default_corpus(), embedded.tokenizer, seq_len=TOKENS, sequences=SEQUENCES)
    yield "trained SmolLM2-135M, on text", [scan(embedded, text)]


def bytes_scan(model: AccessedModel, seed: int) -> Anatomy:
    return scan(model, byte_sequences(SEQUENCES, TOKENS, seed=1_000_000 + seed))


def token_scan(model: AccessedModel, seed: int) -> Anatomy:
    generator = torch.Generator().manual_seed(seed)
    return scan(model, torch.randint(0, model.vocab_size, (SEQUENCES, TOKENS), generator=generator))


def spread(values: list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def main() -> None:
    print(
        "| model | seeds | spike | max / median | token ratio | first key / uniform | sink heads | spikes? | sinks? |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    kept = [(sys.argv[1], [Anatomy.read(Path(folder)) for folder in sys.argv[2:]])] if sys.argv[2:] else records()
    for name, runs in kept:
        cells = [
            name,
            str(len(runs)),
            spread([r.summary.spike for r in runs], "{:.3g}"),
            spread([r.summary.max_over_median for r in runs], "{:,.1f}"),
            spread([r.spikes.token_ratio for r in runs], "{:,.1f}"),
            spread([r.sinks.first_key_importance / r.sinks.uniform_first_key for r in runs], "{:.2f}"),
            spread([r.summary.sink_head_count for r in runs], "{}"),
            "/".join(sorted({"yes" if r.summary.has_spikes else "no" for r in runs})),
            "/".join(sorted({"yes" if r.summary.has_sinks else "no" for r in runs})),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
