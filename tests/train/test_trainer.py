"""The trainer against a bare loop written out here: losses, schedule, decay, accumulation, loss positions."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_recipe import losses, tiny_recipe
from torch import nn

from spikesink.data.bigram_backcopy import BigramSampler, bigram_backcopy
from spikesink.data.packed import is_held_out
from spikesink.errors import InputError, NumericError, OutputError
from spikesink.records import TrainingRun
from spikesink.train.run import fresh_model, train
from spikesink.train.streams import open_stream
from spikesink.train.trainer import RecipeTrainer, decayed
from spikesink.zoo import KeyValueBias, Registers, UnconditionalGate, build


def quiet(stage, done, total):
    pass


def bare_loop(recipe, loss_of):
    """AdamW, warm-up, cosine and clipping by hand; `loss_of(model, ids)` is the loss of one batch."""
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model)
    chain = bigram_backcopy(recipe.model.vocab_size, 2)
    sampler = BigramSampler(chain, recipe.data.seq_len, bos=recipe.data.bos, seed=recipe.data.seed)
    matrices = [p for name, p in model.named_parameters() if "norm" not in name]
    others = [p for name, p in model.named_parameters() if "norm" in name]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    steps, warmup, size = recipe.training.steps, recipe.optimiser.warmup_steps, recipe.training.batch_size
    losses = {}
    for step in range(steps):
        progress = (step - warmup) / max(1, steps - warmup)
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = recipe.optimiser.lr * (step / warmup if step < warmup else cosine)
        ids = torch.from_numpy(np.stack([sampler.sample(step * size + row) for row in range(size)]))
        loss = loss_of(model, ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses[step + 1] = float(loss.detach())
    return losses


def cross_entropy(first, last):
    """Mean over predictions of the tokens at indices first to last."""

    def loss_of(model, ids):
        logits = model(ids).logits[:, first - 1 : last]
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, first : last + 1].flatten())

    return loss_of


def test_losses_are_those_of_a_bare_loop(tmp_path):
    recipe = tiny_recipe()
    record = train(recipe, tmp_path, progress=quiet)
    expected = bare_loop(recipe, cross_entropy(1, 8))
    assert losses(tmp_path) == pytest.approx(expected, abs=2e-5)
    assert expected[12] < expected[1] - 0.05
    assert record.loss_nats == pytest.approx(expected[12], abs=2e-5)
    assert (record.tokens, record.steps, record.processes) == (12 * 4 * 9, 12, 1)
    again = TrainingRun.read(tmp_path)
    assert again.arrays["loss"].tolist() == [losses(tmp_path)[step] for step in range(1, 13)]
    assert again.arrays["loss.step"].tolist() == list(range(1, 13))
    assert again.recipe_sha256 == recipe.sha256()


def test_loss_counts_on_the_chosen_positions_only(tmp_path):
    recipe = tiny_recipe("training.loss_min=3", "training.loss_max=6")
    train(recipe, tmp_path, progress=quiet)
    assert losses(tmp_path) == pytest.approx(bare_loop(recipe, cross_entropy(3, 6)), abs=2e-5)


def test_accumulation_gives_the_same_losses(tmp_path):
    train(tiny_recipe(), tmp_path / "whole", progress=quiet)
    train(tiny_recipe("training.micro_batch=3"), tmp_path / "parts", progress=quiet)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=2e-5)


def test_seeds_of_data_and_model_are_apart(tmp_path):
    first = {}
    for name, changes in {"base": [], "data": ["data.seed=1"], "model": ["training.seed=1"]}.items():
        train(tiny_recipe("training.steps=1", *changes), tmp_path / name, progress=quiet)
        first[name] = (
            losses(tmp_path / name)[1],
            np.load(tmp_path / name / "held_out.npy").tolist(),
        )
    assert first["model"][0] != first["base"][0] != first["data"][0]
    assert first["model"][1] == first["base"][1] != first["data"][1]


def test_decay_acts_on_matrices_and_embeddings_only():
    recipe = tiny_recipe("model.norm=dyt", "model.normaliser=learned_sink", "model.position=learned")
    spec = recipe.model.model_copy(update={"gate": UnconditionalGate(per="channel"), "virtual_keys": KeyValueBias(n=2)})
    model = build(spec)
    names = set(decayed(model))
    assert names <= {name for name, _ in model.named_parameters()}
    others = [name for name, _ in model.named_parameters() if name not in names]
    left_out = {name.split(".", 3)[-1] if ".layers." in name else name for name in others}
    assert left_out == {
        "input_layernorm.alpha", "input_layernorm.weight", "input_layernorm.bias", "ffn_layernorm.alpha",
        "ffn_layernorm.weight", "ffn_layernorm.bias", "self_attn.sinks.logits", "self_attn.virtual.key",
        "self_attn.virtual.value", "self_attn.gate.logits", "model.norm.alpha", "model.norm.weight", "model.norm.bias",
    }  # fmt: skip
    registers = build(recipe.model.model_copy(update={"virtual_keys": Registers()}))
    assert "model.registers.weight" not in decayed(registers)


def test_the_held_out_loss_and_the_saved_model_agree(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = train(tiny_recipe(), tmp_path, progress=quiet)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.from_numpy(np.load(tmp_path / "held_out.npy"))
    with torch.no_grad():
        assert record.held_out_loss_nats == pytest.approx(float(model(ids, labels=ids).loss), abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.bos_token_id == 0 == model.config.bos_token_id
    assert set(ids[:, 0].tolist()) == {0}


def test_a_run_in_the_way_is_not_overwritten(tmp_path):
    train(tiny_recipe("training.steps=1"), tmp_path, progress=quiet)
    with pytest.raises(OutputError, match="already holds a run; pass --resume"):
        train(tiny_recipe(), tmp_path, progress=quiet)
    with pytest.raises(InputError, match="no run to resume"):
        train(tiny_recipe(), tmp_path / "nothing", resume=True, progress=quiet)


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("spikesink.train.trainer.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"trackers names wandb, not installed; pip install"):
        train(tiny_recipe("running.trackers=[wandb]"), tmp_path, progress=quiet)


def test_a_run_shorter_than_its_logging_interval(tmp_path):
    record = train(
        tiny_recipe("training.steps=2", "running.log_every=5", "running.save_every=5"), tmp_path, progress=quiet
    )
    assert record.loss_nats == pytest.approx(2.5, abs=1.0)


def test_readings_reach_tensorboard(tmp_path):
    """The event file of a real TensorBoard holds the monitor's readings, at their steps."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    changes = ("running.trackers=[tensorboard]", "monitor.every=4", "running.log_every=3")
    train(tiny_recipe(*changes), tmp_path, progress=quiet)
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    reader = accumulator.EventAccumulator(str(folder))
    reader.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name, points in (("spikesink/sink_ratio", 3), ("spikesink/layer_1/spike", 3), ("loss", 4)):
        logged = {line["step"]: line[name] for line in lines if name in line}
        scalars = {event.step: event.value for event in reader.Scalars(f"train/{name}")}
        assert scalars == pytest.approx(logged, rel=1e-6)
        assert len(logged) == points


@pytest.mark.parametrize("bos", [True, False])
def test_training_on_text(tmp_path, monkeypatch, bos):
    """Tokenizer and token file are made once and cached; the held-out sequences are of held-out documents."""
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))
    documents = [f"line {index} of {index * 7919 % 1000} words" for index in range(400)]
    (tmp_path / "words.txt").write_text("\n".join(documents))
    source = f"data.source={{kind: text, path: {tmp_path / 'words.txt'}}}"
    recipe = tiny_recipe(source, "model.vocab_size=280", f"data.bos={str(bos).lower()}", "monitor.every=6")
    record = train(recipe, tmp_path / "run", progress=quiet)
    ids = np.load(tmp_path / "run" / "held_out.npy")
    assert (ids[:, 0] == 0).all() == bos
    tokens = record.provenance.tokens
    assert tokens["bos"] is bos and tokens["documents"] == 400 and tokens["vocab_size"] == 280
    assert tokens["passes"] == pytest.approx(48 / (tokens["tokens"] // (8 if bos else 9)))
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(tmp_path / "run" / "model").decode(ids.flatten().tolist())
    first = next(document for document in documents if is_held_out(document))
    assert text.replace("<bos>", "").startswith(first + "<eos>")
    trained = f"data.source={{kind: text, path: {tmp_path / 'words.txt'}, tokenizer: {tmp_path / 'run' / 'model'}}}"
    too_small = tiny_recipe(trained, "model.vocab_size=279")
    with pytest.raises(InputError, match=r"tokenizer has 280 tokens, model.vocab_size is 279"):
        train(too_small, tmp_path / "other", progress=quiet)


def test_bf16_trains_near_fp32_and_keeps_fp32_weights(tmp_path):
    train(tiny_recipe(), tmp_path / "fp32", progress=quiet)
    train(tiny_recipe("training.precision=bf16", "monitor.every=4"), tmp_path / "bf16", progress=quiet)
    one, other = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert one != other
    assert other == pytest.approx(one, abs=0.02)
    from safetensors.torch import load_file

    assert all(w.dtype == torch.float32 for w in load_file(tmp_path / "bf16" / "model" / "model.safetensors").values())


@pytest.mark.parametrize(
    ("precision", "seq_len", "attention"),
    [("bf16", 127, "eager"), ("bf16", 128, "eager"), ("bf16", 129, "sdpa"), ("fp32", 127, "sdpa")],
)
def test_short_sequences_in_bf16_are_attended_by_products(tmp_path, precision, seq_len, attention):
    recipe = tiny_recipe(f"training.precision={precision}", f"data.seq_len={seq_len}", "model.max_positions=160")
    stream = open_stream(recipe, quiet)
    trainer = RecipeTrainer(recipe, fresh_model(recipe, stream), stream, tmp_path)
    assert trainer.model.config._attn_implementation == attention


def test_nan_stops_with_step_and_samples(tmp_path):
    with pytest.raises(NumericError, match=r"step 4, on samples 12 to 15 \(data.seed 0\)"):
        train(tiny_recipe("optimiser.lr=1e30", "optimiser.warmup_steps=1"), tmp_path, progress=quiet)


def test_fsdp_in_one_process_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"training.fsdp is true, but there is one process"):
        train(tiny_recipe("training.fsdp=true"), tmp_path, progress=quiet)


@pytest.mark.parametrize(("loss", "step"), [(float("nan"), 5), (float("inf"), 4), (1.5, None)])
def test_losses_that_are_read_together_name_the_first_that_is_not_finite(loss, step):
    """As on an accelerator, where reading each would wait for it: steps 4 and 5 since the last look."""
    trainer = RecipeTrainer.__new__(RecipeTrainer)
    trainer.recipe = tiny_recipe("training.batch_size=4")
    given = {4: float("inf") if step == 4 else 2.0, 5: loss}
    trainer.unchecked = [(at, torch.tensor(value)) for at, value in given.items()]
    if step is None:
        trainer._check_losses()
        assert trainer.unchecked == []
        return
    first = 4 * (step - 1)
    with pytest.raises(NumericError, match=f"at step {step}, on samples {first} to {first + 3} "):
        trainer._check_losses()
