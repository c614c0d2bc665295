"""How fast and how small a scan is, against a plain SDPA forward of the same batch and what users do today.

Run: make bench. Time: contender and plain forward alternate in one process, and the figure is the median of the paired
ratios of CPU time. Memory: runs in processes of their own, the peak above the loaded model; for the scan the median of
three.

Peers: Hugging Face eager attention with output_attentions=True, and TransformerLens run_with_cache (a HookedTransformer
of the same shape in an environment of its own: make bench-peer makes it; left out where it is missing).
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PEER = Path(__file__).parent / "peer"
PEER_PYTHON = PEER / "bin" / "python"
WITH_PEERS = (64, 512, 2048)
WITHOUT_PEERS = (4096, 8192)
TOKENS_PER_BATCH = 2048
MEMORY_RUNS = 3
CONTENDERS = ("scan", "eager", "transformer_lens")


def peak_mib() -> float:
    """Largest resident memory since the last reset, in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM: this benchmark needs Linux")


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads, which other work on the machine hardly changes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def peak(work: Callable[[], object]) -> float:
    """MiB at the peak above what was resident before."""
    gc.collect()
    # Resets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib()
    work()
    return peak_mib() - before


def contender(name: str, tokens: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """(The contender, the plain SDPA forward), each one pass over the same batch."""
    import torch

    batch = max(1, TOKENS_PER_BATCH // tokens)
    ids = torch.randint(0, 49152, (batch, tokens), generator=torch.Generator().manual_seed(0))
    if name == "transformer_lens":
        return _transformer_lens(ids)
    from spikesink import load
    from spikesink.access import full_batch, observing, watch
    from spikesink.measure.perplexity import LossMeasure
    from spikesink.measure.sinks import SinkMeasure
    from spikesink.measure.spikes import SpikeMeasure

    accessed = load()
    model = accessed.model
    # Weights are mapped from their file: read in now, they are no part of a pass's memory.
    with torch.inference_mode():
        model(input_ids=ids[:1, :8], use_cache=False)

    def plain() -> object:
        model.set_attn_implementation("sdpa")
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False).logits

    def scan() -> None:
        with observing(accessed, [SpikeMeasure(), SinkMeasure(), LossMeasure()]):
            watch(accessed, full_batch(ids))

    def eager() -> object:
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False, output_attentions=True)

    return {"scan": scan, "eager": eager}[name], plain


def _transformer_lens(ids) -> tuple[Callable[[], object], Callable[[], object]]:
    """A HookedTransformer of SmolLM2-135M's shape with random weights, and its Hugging Face twin."""
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"n_layers": 30, "d_model": 576, "n_heads": 9, "d_head": 64, "d_mlp": 1536, "d_vocab": 49152}
    config = HookedTransformerConfig(
        **shape, n_ctx=8192, n_key_value_heads=3, act_fn="silu", gated_mlp=True, normalization_type="RMS",
        positional_embedding_type="rotary", rotary_dim=64, default_prepend_bos=False, device="cpu",
    )  # fmt: skip
    hooked = HookedTransformer(config)
    llama = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    twin = LlamaForCausalLM._from_config(llama, attn_implementation="sdpa").eval()

    def plain() -> object:
        with torch.inference_mode():
            return twin(input_ids=ids, use_cache=False).logits

    def cached() -> object:
        with torch.inference_mode():
            return hooked.run_with_cache(ids)

    return cached, plain


def work(name: str, tokens: int, pairs: int, what: str) -> None:
    """In a process of its own; prints one line of JSON."""
    run, plain = contender(name, tokens)
    if what == "time":
        seconds(plain), seconds(run)
        result = statistics.median(seconds(run) / seconds(plain) for _ in range(pairs))
    else:
        result = peak(run if what == "memory" else plain)
    print("RESULT" + json.dumps(result), flush=True)


def measure(name: str, tokens: int, pairs: int, what: str) -> float | None:
    """One figure of one contender at one length; None where it is not installed or did not survive."""
    python = str(PEER_PYTHON) if name == "transformer_lens" else sys.executable
    if not Path(python).exists():
        return None
    command = [python, __file__, "--worker", name, "--length", str(tokens), "--pairs", str(pairs), "--what", what]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            return json.loads(line.removeprefix("RESULT"))
    print(f"{name} at {tokens} ended with {done.returncode}: {done.stderr[-300:]}", file=sys.stderr)
    return None


def cells(name: str, tokens: int, pairs: int) -> list[str]:
    """Time and memory of one contender as ratios to the plain forward."""
    time_ratio = measure(name, tokens, pairs, "time")
    plain = measure(name, tokens, pairs, "plain_memory")
    if time_ratio is None or plain is None:
        return ["not run", "not run"]
    # How a heap splits differs from run to run.
    runs = [measure(name, tokens, pairs, "memory") for _ in range(MEMORY_RUNS if name == "scan" else 1)]
    memory = statistics.median(peak for peak in runs if peak is not None)
    print(f"{name} at {tokens}: {time_ratio:.2f} x; {memory:,.0f} MiB, plain {plain:,.0f} MiB", file=sys.stderr)
    return [f"{time_ratio:.2f} x", f"{memory / plain:.2f} x ({memory:,.0f})"]


def map_mib(tokens: int) -> float:
    """What all attention maps of one sequence would take: 30 layers x 9 heads x T x T float32."""
    return 30 * 9 * tokens**2 * 4 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", default=[*WITH_PEERS, *WITHOUT_PEERS])
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.length, options.pairs, options.what)
        return
    print("| T | batch | scan: time | memory | eager: time | memory | TransformerLens: time | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for tokens in options.lengths:
        row = [str(tokens), str(max(1, TOKENS_PER_BATCH // tokens)), *cells("scan", tokens, options.pairs)]
        for name in CONTENDERS[1:]:
            fits = tokens in WITH_PEERS
            row += cells(name, tokens, options.pairs) if fits else ["-", f"maps: {map_mib(tokens):,.0f} MiB"]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
