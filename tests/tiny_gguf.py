"""A GGUF file of a few kilobytes with a real byte-level tokenizer, laid out as the embedded SmolLM2's is."""

from pathlib import Path

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

D_MODEL, D_FFN, HEADS, KV_HEADS, LAYERS = 32, 48, 4, 2, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "i n", "Ġ t")


def write_tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Random float32 weights; tokens are three special ones, the 256 bytes and four merges."""
    tokens = [*SPECIAL, *bytes_to_unicode().values(), *("".join(merge.split()) for merge in MERGES)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(D_FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(D_MODEL // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, shape in _shapes(len(tokens)).items():
        values = np.random.default_rng([seed, len(name), sum(name.encode())]).standard_normal(shape)
        writer.add_tensor(name, (np.ones(shape) if len(shape) == 1 else 0.3 * values).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
