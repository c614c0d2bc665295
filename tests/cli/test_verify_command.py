"""`spikesink verify` as it is typed: exit code, table, JSON, record, refusals."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from spikesink.access import attention


def test_a_model_that_holds(cli, checkpoint):
    ran = cli("verify", checkpoint, "--seq-len", 30)
    assert ran.code == 0
    for said in ("tiny-llama verified", "writes add up", "30", "Not guaranteed", "sequences longer than 30 tokens"):
        assert said in " ".join(ran.out.split())
    rows = [line.strip("│ ").split() for line in ran.out.splitlines()]
    assert [row[0] for row in rows if row[-1:] == ["30"] and row[0].isdigit()] == ["0", "1", "2"]
    assert max(len(line) for line in ran.out.splitlines()) <= 100


def test_json_is_only_json(cli, checkpoint, tmp_path):
    ran = cli("verify", checkpoint, "--seq-len", 30, "--json", "--out", "made")
    record = json.loads(ran.out)
    assert ran.code == 0
    assert record["verified"] is True
    assert record["kind"] == "verification"
    assert all(len(check["by_layer"]) in (0, 3) for check in record["checks"])
    assert json.loads((tmp_path / "made" / "verification.json").read_text()) == record


def test_a_model_that_does_not_hold_exits_2_and_still_shows_every_layer(cli, checkpoint, monkeypatch):
    honest = attention._rows

    def other(*args):
        rows = honest(*args)
        rows.weights.mul_(1.1)
        return rows

    monkeypatch.setattr(attention, "_rows", other)
    ran = cli("verify", checkpoint, "--seq-len", 30)
    assert ran.code == 2
    assert "refused" in ran.out
    assert "Check 'maps' fails: layer_index" in ran.err
    assert "limit 1e-03" in ran.err
    assert "Traceback" not in ran.err
    assert json.loads(cli("verify", checkpoint, "--seq-len", 30, "--json").out)["verified"] is False


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_beyond_the_range_are_named(cli, checkpoint, tmp_path, dtype):
    """A write of 1e5 and more: more than float16 can say, so refused there; float32 holds it."""
    folder = tmp_path / "large"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1e4
    tensors["model.layers.1.mlp.up_proj.weight"] *= 30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ran = cli("verify", folder, "--seq-len", 30, "--dtype", dtype)
    if dtype == "float32":
        assert ran.code == 0
    else:
        assert ran.code == 2
        assert "beyond the range of float16" in ran.err
        assert "65,504" in ran.err
        assert "--dtype float32" in ran.err


def test_too_many_tokens(cli, checkpoint):
    ran = cli("verify", checkpoint, "--seq-len", 200)
    assert ran.code == 2
    assert "200 tokens; expected 2 to the model's 128 positions" in ran.err
