"""The monitor: its numbers are scan's, training does not notice it, and it logs next to the loss."""

import json

import numpy as np
import pytest
import torch
from tiny_recipe import losses, tiny_recipe
from transformers import Trainer, TrainerCallback, TrainingArguments

from spikesink import scan
from spikesink.access import access
from spikesink.analyse.readings import anatomy_sums, merged
from spikesink.errors import InputError
from spikesink.train import AnatomyCallback, AnatomyMonitor
from spikesink.train.run import train
from spikesink.zoo import AttentionFFN, build

EPSILON = 0.45
IDS = torch.randint(0, 12, (5, 9), generator=torch.Generator().manual_seed(3))


def quiet(stage, done, total):
    pass


def model_of(**changes):
    torch.manual_seed(4)
    model = build(tiny_recipe().model.model_copy(update=changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15.0)
    return model


@pytest.mark.parametrize("changes", [{}, {"ffn": AttentionFFN()}], ids=["baseline", "attention-ffn"])
def test_readings_are_those_of_scan(changes):
    model = model_of(**changes)
    readings = AnatomyMonitor(model, IDS, epsilon=EPSILON).read(0)
    record = scan(access(model), IDS, epsilon=EPSILON)
    summary = record.summary
    assert readings["spikesink/spike"] == pytest.approx(summary.spike)
    assert readings["spikesink/max_over_median"] == pytest.approx(summary.max_over_median)
    assert readings["spikesink/sink_ratio"] == pytest.approx(summary.sink_ratio_sun2026)
    assert 0 < summary.sink_ratio_sun2026 < 1
    assert readings["spikesink/first_token_importance"] == pytest.approx(record.sinks.first_key_importance)
    for layer in (0, 1):
        blocks = [cycle for cycle in record.lifecycle.blocks if (cycle.block - 1) // 2 == layer]
        heads = [head for head in record.sinks.heads if (head.block - 1) // 2 == layer]
        name = f"spikesink/layer_{layer}"
        assert readings[f"{name}/spike"] == pytest.approx(max(cycle.resid_top3[0].value for cycle in blocks))
        assert readings[f"{name}/max_over_median"] == pytest.approx(max(c.resid_max_over_median for c in blocks))
        assert readings[f"{name}/sink_ratio"] == pytest.approx(np.mean([head.sink_rate for head in heads]))
        importance = np.mean([head.first_key_importance for head in heads])
        assert readings[f"{name}/first_token_importance"] == pytest.approx(importance)
    assert len(readings) == 4 * 3


def test_runs_that_share_a_file_are_told_apart(tmp_path):
    """Also where the one before was killed while it wrote."""
    model, path = model_of(), tmp_path / "anatomy.jsonl"
    for run in (1, 2):
        monitor = AnatomyMonitor(model, IDS[:1], path=path)
        for step in (50, 100):
            monitor(step)
        if run == 1:
            path.write_text(path.read_text() + '{"run": 1, "st')
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [(line["run"], line["step"]) for line in map(json.loads, lines)] == [(1, 50), (1, 100), (2, 50), (2, 100)]


def test_parts_merge_into_the_whole():
    accessed = access(model_of())
    whole = anatomy_sums(accessed, IDS, epsilon=0.2).readings()
    parts = merged(
        [anatomy_sums(accessed, IDS[:2], epsilon=0.2), anatomy_sums(accessed, IDS[2:], epsilon=0.2)]
    ).readings()
    assert parts == pytest.approx(whole, rel=1e-6)


def test_training_does_not_notice_the_monitor(tmp_path):
    train(tiny_recipe(), tmp_path / "without", progress=quiet)
    record = train(tiny_recipe("monitor.every=2", "monitor.sequences=3"), tmp_path / "with", progress=quiet)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    lines = [json.loads(line) for line in (tmp_path / "with" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "spikesink/spike" in line] == [2, 4, 6, 8, 10, 12]
    last = [line for line in lines if "spikesink/spike" in line][-1]
    assert record.anatomy["spike"] == last["spikesink/spike"]
    assert record.arrays["spikesink/layer_1/spike"].shape == (6,)


def test_any_trainer_gets_the_readings_and_keeps_its_own_log(tmp_path):
    """A plain Llama under a plain Trainer; its loss is logged at the steps of the readings too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append((state.global_step, set(logs)))

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=16,
        )
    )  # fmt: skip
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS.repeat(4, 1)]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, logging_steps=2, report_to="none",
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[Reporter()])
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    callback = AnatomyCallback(IDS, every=2, path=tmp_path / "anatomy.jsonl").attach(trainer)
    trainer.train()
    assert [step for step, names in seen if "loss" in names] == [2, 4, 6]
    assert [step for step, names in seen if "spikesink/layer_1/spike" in names] == [2, 4, 6]
    logged = [entry for entry in trainer.state.log_history if "spikesink/sink_ratio" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    lines = [json.loads(line) for line in (tmp_path / "anatomy.jsonl").read_text().splitlines()]
    assert [line["spikesink/spike"] for line in lines] == [entry["spikesink/spike"] for entry in logged]
    assert callback.monitor is not None
    assert model.config._attn_implementation == "sdpa"
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_a_plain_loop(tmp_path):
    model = model_of().train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    monitor = AnatomyMonitor(model, IDS, every=3, path=tmp_path / "sub" / "log.jsonl")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    readings = [monitor(step) for step in range(7)]
    assert torch.rand(1) == expected
    assert [step for step, reading in enumerate(readings) if reading is not None] == [0, 3, 6]
    assert len((tmp_path / "sub" / "log.jsonl").read_text().splitlines()) == 3
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    model(IDS, labels=IDS).loss.backward()


def test_unusable_input_is_refused():
    with pytest.raises(InputError, match=r"expected \(sequences, tokens\), 2 tokens or more"):
        AnatomyMonitor(model_of(), IDS[0])
    with pytest.raises(InputError, match="every is 0"):
        AnatomyMonitor(model_of(), IDS, every=0)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (IDS.float(), r"Token ids have type float32"),
        (IDS.clone().index_put_((torch.tensor(1), torch.tensor(2)), torch.tensor(-100)), "go from -100"),
        (IDS + 40, "outside the model's vocabulary"),
        ([[1, 2, 3], [4, 5]], "expected rows of one length"),
    ],
)
def test_ids_that_the_model_cannot_take_are_refused_at_once(ids, words):
    with pytest.raises(InputError, match=words):
        AnatomyMonitor(model_of(), ids)


def llama(seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=16,
        )
    )  # fmt: skip


def test_ids_in_other_forms_and_a_wrapped_model():
    model = llama()
    expected = AnatomyMonitor(model, IDS).read(0)
    assert AnatomyMonitor(model, IDS.numpy()).read(0) == expected
    assert AnatomyMonitor(torch.nn.DataParallel(model), IDS.tolist()).read(0) == expected
    assert AnatomyMonitor(torch.compile(model), IDS).read(0) == expected


def test_layers_that_were_compiled_one_by_one():
    model = llama()
    expected = AnatomyMonitor(model, IDS).read(0)
    for layer in model.model.layers:
        layer.compile(backend="eager")
    model(IDS)
    assert AnatomyMonitor(model, IDS).read(0) == expected
    model(IDS, labels=IDS).loss.backward()


def test_weights_that_overflow_are_a_warning_and_a_missing_reading():
    model = llama()
    monitor = AnatomyMonitor(model, IDS, every=1)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = torch.inf
    with pytest.warns(UserWarning, match="No reading at step 3: NumericError"):
        assert monitor(3) is None


def trainer_of(tmp_path, model=None, **options):
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS.repeat(4, 1)]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, logging_steps=2, report_to="none",
        use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=0.05,
    )  # fmt: skip
    return Trainer(model=model, args=args, train_dataset=rows, **options)


def readings_of(trainer):
    return [entry for entry in trainer.state.log_history if "spikesink/spike" in entry]


@pytest.mark.parametrize("attached", [True, False], ids=["attach", "callbacks"])
@pytest.mark.parametrize("made_anew", [True, False], ids=["model_init", "model"])
def test_the_model_that_is_trained_is_watched(tmp_path, attached, made_anew):
    """Also one that the trainer makes for itself when training begins, and without `attach`."""
    callback = AnatomyCallback(IDS, every=2)
    options = {"model_init": lambda: llama()} if made_anew else {"model": llama()}
    trainer = trainer_of(tmp_path, callbacks=None if attached else [callback], **options)
    if attached:
        callback.attach(trainer)
    trainer.train()
    logged = readings_of(trainer)
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert len({entry["spikesink/spike"] for entry in logged}) == 3
    assert logged[-1]["spikesink/spike"] == pytest.approx(scan(trainer.model, IDS).summary.spike)


def test_a_model_that_cannot_be_measured_is_trained_all_the_same(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, llama(), callbacks=[AnatomyCallback(IDS + 40, every=2)])
    with pytest.warns(UserWarning, match="training is not watched: InputError.*vocabulary"):
        trainer.train()
    assert trainer.state.global_step == 6 and not readings_of(trainer)
