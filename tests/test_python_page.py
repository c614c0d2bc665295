"""docs/python.md as it stands: every snippet is run in order, on a tiny checkpoint that lies where the page says."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
PARTS = PAGE.split("\n## ")


def snippets(part: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", part, re.DOTALL | re.MULTILINE)


def english_checkpoint(folder: Path) -> None:
    """A tiny Llama that spikes at exclamation marks, with a tokenizer of single bytes."""
    from tiny import spiking
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="~", pad_token="~")
    wrapped.save_pretrained(folder)
    spiking(vocab_size=len(alphabet)).save_pretrained(folder)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """What the snippets share; the current folder is where the checkpoint lies."""
    monkeypatch.chdir(tmp_path)
    english_checkpoint(tmp_path / "my-model")
    return {}


def run(part: str, shared: dict) -> None:
    for code in snippets(part):
        exec(compile(code, "docs/python.md", "exec"), shared)


def test_every_snippet_runs_as_written(page, capsys):
    assert PAGE.count("```python") == sum(len(snippets(part)) for part in PARTS) >= 7
    for part in PARTS[:-1]:
        run(part, page)
    record = page["record"]
    out = capsys.readouterr().out
    assert out.count(" ") >= 2 and "(2, 8)" in out
    assert list(page["heads"].columns[:2]) == ["block", "head"] and len(page["heads"]) == 12
    assert Path("lifecycle.html").stat().st_size > 1000
    assert page["same"].to_json() == record.to_json() and {"where", "difference"} < set(page["changes"].columns)
    unedited = page["spikesink"].scan(page["accessed"], page["ids"])
    assert page["edited"].summary.spike < unedited.summary.spike
    assert page["text"].startswith("Listen! Once upon a time") and page["loss"] > 0


def test_an_intervention_holds_inside_lm_eval(page, capsys):
    pytest.importorskip("lm_eval", reason="lm_eval is heavy and no dependency: pip install lm_eval")
    for part in PARTS[:2]:
        run(part, page)
    run(PARTS[-2].replace("```python", "```python\nfrom spikesink.data import tokenise", 1), page)
    run(PARTS[-1], page)
    assert page["before"]["perplexity,none"] != page["without"]["perplexity,none"]
