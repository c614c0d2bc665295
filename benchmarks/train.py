"""Speed of training, as ratios of runs that alternate on the same machine: python benchmarks/train.py

CPU time, which other work on the machine hardly changes; precision and attention are the trainer's in all of them:
1. the trainer's tokens a second over a bare PyTorch loop's with the same model, data, batch and optimiser, after the
   first steps (target: at least 0.97);
2. forward + backward of the zoo's baseline over Hugging Face's Llama with the same weights (target: at least 1.0);
3. the monitor's share of the time at one reading every 50 steps (target: under 5 %);
4. where the trainer does not take fused attention (bf16, short sequences), what that choice brings.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from spikesink.observer import no_progress
from spikesink.train import AnatomyMonitor
from spikesink.train.recipe import Recipe, load_recipe
from spikesink.train.run import fresh_model, train
from spikesink.train.streams import open_stream
from spikesink.train.trainer import attends_by_products, decayed
from spikesink.zoo import build, to_hf

FIRST_STEPS = 5
"""Of the trainer and of the loop, in which buffers are made: not counted."""
QUIET = ("monitor.every=0", "running.eval_every=0", "running.save_every=10000")


def autocast(recipe: Recipe) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16")


def attention(recipe: Recipe) -> str:
    return "eager" if attends_by_products(recipe) else "sdpa"


def bare_loop(recipe: Recipe) -> float:
    """Tokens per CPU second of the shortest loop that does the same updates."""
    stream = open_stream(recipe, no_progress)
    model = fresh_model(recipe, stream).train()
    model.set_attn_implementation(attention(recipe))
    names = set(decayed(model))
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in names], "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if n not in names], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.optimiser.lr, betas=recipe.optimiser.betas, fused=True)
    size, steps = recipe.training.batch_size, recipe.training.steps
    started = 0.0
    for step in range(steps):
        if step == FIRST_STEPS:
            started = time.process_time()
        ids = torch.from_numpy(np.stack([stream.sample(step * size + row) for row in range(size)]))
        with autocast(recipe):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.grad_clip)
        optimiser.step()
        optimiser.zero_grad()
    return (steps - FIRST_STEPS) * size * recipe.data.seq_len / (time.process_time() - started)


def trainer(recipe: Recipe) -> float:
    times: dict[int, float] = {}

    def note(stage: str, done: int, _total: int) -> None:
        if stage == "train":
            times[done] = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "run", progress=note)
    steps = recipe.training.steps
    tokens = (steps - FIRST_STEPS) * recipe.training.batch_size * recipe.data.seq_len
    return tokens / (times[steps] - times[FIRST_STEPS])


def forward_backward(recipe: Recipe, model: PreTrainedModel, ids: torch.Tensor, attend: str | None = None) -> float:
    model.set_attn_implementation(attend or attention(recipe))
    started = time.process_time()
    with autocast(recipe):
        loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    return time.process_time() - started


def said(name: str, ratios: list[float], target: str) -> None:
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{name}: {middle:.3f} (median of {len(ratios)} pairs, {low:.3f} to {high:.3f}; target {target})", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", default="nano")
    options.add_argument("--set", nargs="*", default=[], dest="changes", help="Of the recipe.")
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    recipe = load_recipe(given.recipe, [f"training.steps={given.steps}", *QUIET, *given.changes])
    print(f"{given.recipe}: {recipe.precision}, {attention(recipe)} attention, {recipe.data.seq_len} tokens")
    rates = [(trainer(recipe), bare_loop(recipe)) for _ in range(given.pairs)]
    said("trainer / bare loop, tokens per CPU second", [ours / bare for ours, bare in rates], ">= 0.97")
    print(f"trainer: {statistics.median(ours for ours, _ in rates):,.0f} tokens per CPU second")

    ours = build(recipe.model.model_copy(update={"n_kv_heads": recipe.model.n_heads})).train()
    theirs = to_hf(ours).train()
    ids = torch.randint(0, recipe.model.vocab_size, (recipe.training.batch_size, recipe.data.seq_len))
    for model in (ours, theirs) * 3:
        forward_backward(recipe, model, ids)
    ratios = [
        forward_backward(recipe, theirs, ids) / forward_backward(recipe, ours, ids) for _ in range(8 * given.pairs)
    ]
    said("Llama's / our forward + backward, seconds", ratios, ">= 1.0")

    watched = load_recipe(given.recipe).monitor
    monitor = AnatomyMonitor(ours, ids[: watched.sequences])
    shares = []
    for _ in range(given.pairs):
        started = time.process_time()
        monitor.read(0)
        reading = time.process_time() - started
        shares.append(reading / (50 * forward_backward(recipe, ours, ids)))
    said("a reading / 50 forward + backward, seconds", shares, "< 0.05")

    if attention(recipe) != "sdpa":
        ratios = [
            forward_backward(recipe, ours, ids, "sdpa") / forward_backward(recipe, ours, ids)
            for _ in range(4 * given.pairs)
        ]
        said("fused attention / the trainer's, forward + backward, seconds", ratios, "> 1")


if __name__ == "__main__":
    main()
