"""Checkpoints for programs that do not know spikesink."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from zoo_grid import BASE, decoder, spec_of, token_ids

from spikesink.errors import UnsupportedModelError
from spikesink.zoo import export


def test_a_plain_llama(tmp_path):
    model = decoder(BASE.model_copy(update={"d_head": 6}))
    export(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, LlamaForCausalLM)
    with torch.no_grad():
        assert torch.allclose(again(token_ids()).logits, model(token_ids()).logits, atol=1e-5)


def test_plain_is_refused_where_it_would_be_another_model(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"gate \(conditional\)"):
        export(decoder(spec_of("gate-conditional-head")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_code_beside_the_weights_runs_without_spikesink(tmp_path):
    model = decoder(spec_of("gated-sandwich-sink"))
    export(model, tmp_path / "model", code=True)
    torch.save((token_ids(), model(token_ids()).logits), tmp_path / "expected.pt")
    code = f"""
import sys, torch
sys.modules["spikesink"] = None
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True).eval()
ids, expected = torch.load({str(tmp_path / "expected.pt")!r})
assert torch.allclose(model(ids).logits, expected, atol=1e-5)
assert model.generate(ids, max_new_tokens=2, pad_token_id=0).shape == (2, 15)
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
