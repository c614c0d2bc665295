"""A GGUF file of a few kilobytes with a real byte-level tokenizer, laid out as the embedded SmolLM2's is."""

from pathlib import Path

import numpy as np
from gguf_of import VOCABULARY, write_gguf

D_MODEL, D_FFN, HEADS, KV_HEADS, LAYERS = 32, 48, 4, 2, 2


def write_tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Random float32 weights; tokens are three special ones, the 256 bytes and four merges."""
    keys = {
        "general.name": "tiny", "context_length": 128, "embedding_length": D_MODEL, "block_count": LAYERS,
        "feed_forward_length": D_FFN, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
        "rope.freq_base": 10_000.0, "rope.dimension_count": D_MODEL // HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": len(VOCABULARY),
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    tensors = {}
    for name, shape in _shapes(len(VOCABULARY)).items():
        values = np.random.default_rng([seed, len(name), sum(name.encode())]).standard_normal(shape)
        tensors[name] = (np.ones(shape) if len(shape) == 1 else 0.3 * values).astype(np.float32)
    return write_gguf(path, "llama", keys, tensors)


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """As numpy has them, the slowest dimension first."""
    narrow = D_MODEL // HEADS * KV_HEADS
    layer = {
        "attn_norm": (D_MODEL,),
        "attn_q": (D_MODEL, D_MODEL),
        "attn_k": (narrow, D_MODEL),
        "attn_v": (narrow, D_MODEL),
        "attn_output": (D_MODEL, D_MODEL),
        "ffn_norm": (D_MODEL,),
        "ffn_gate": (D_FFN, D_MODEL),
        "ffn_up": (D_FFN, D_MODEL),
        "ffn_down": (D_MODEL, D_FFN),
    }
    layers = {f"blk.{index}.{name}.weight": shape for index in range(LAYERS) for name, shape in layer.items()}
    return {"token_embd.weight": (vocabulary, D_MODEL), **layers, "output_norm.weight": (D_MODEL,)}
