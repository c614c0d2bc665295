"""A run's files: the log survives a kill while it is rewritten, a model that is there is whole, clocks may jump."""

import json
import os
import time

import pytest
from tiny_recipe import losses, tiny_recipe
from transformers import TrainerState

from spikesink.errors import OutputError
from spikesink.train import run
from spikesink.train.run import train
from spikesink.train.trainer import Curves


class KilledError(BaseException):
    """What no handler expects."""


def quiet(stage, done, total):
    pass


def begin(out, step=12):
    """What the log does when a run goes on from a checkpoint of this step."""
    state = TrainerState.load_from_json(str(out / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json"))
    Curves(out / "log.jsonl", quiet, writes=True).on_train_begin(None, state, None)


@pytest.fixture
def out(tmp_path):
    train(tiny_recipe(), tmp_path / "run", progress=quiet)
    return tmp_path / "run"


def test_killed_while_the_log_is_rewritten(out, monkeypatch):
    """It used to be truncated first: the lines up to the checkpoint were gone for good."""
    before = losses(out)

    def dies(_):
        raise KilledError

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(KilledError):
        begin(out, step=9)
    assert losses(out) == before
    monkeypatch.undo()
    begin(out, step=9)
    assert losses(out) == {step: loss for step, loss in before.items() if step <= 9}


@pytest.mark.parametrize("torn", ['{"step": 13, "lo', "[1]\n", '{"loss": 3}\n', "\x00\x00\n"])
def test_a_torn_line_of_the_log_is_dropped(out, torn):
    before = losses(out)
    with (out / "log.jsonl").open("a") as file:
        file.write(torn)
    begin(out)
    assert losses(out) == before


def test_a_full_disk_at_the_very_end(tmp_path, monkeypatch):
    """No model rather than half of one; the run goes on from its last checkpoint."""

    def full(_, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.RecipeTrainer, "save_final", full)
    with pytest.raises(OutputError, match=r"model could not be written.*No space left.*--resume"):
        train(tiny_recipe(), tmp_path, progress=quiet)
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".*"))
    assert not (tmp_path / "training.json").exists()
    monkeypatch.undo()
    train(tiny_recipe(), tmp_path, resume=True, progress=quiet)
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "model").iterdir()}


def test_a_log_that_cannot_be_written_is_one_message(tmp_path, monkeypatch):
    curves = Curves(tmp_path / "gone" / "log.jsonl", quiet, writes=True)
    with pytest.raises(OutputError, match="--resume"):
        curves.on_log(None, TrainerState(log_history=[{"loss": 1.0, "step": 1}]), None)


def test_speed_does_not_follow_the_wall_clock(tmp_path, monkeypatch):
    true = time.time
    started = true()
    # An hour back for every second that passes.
    monkeypatch.setattr(time, "time", lambda: started - 3600 * (true() - started))
    record = train(tiny_recipe(), tmp_path, progress=quiet)
    assert record.tokens_per_s > 0 and record.timing.forward_s > 0
    assert json.loads((tmp_path / "training.json").read_text())["timing"]["forward_s"] > 0
