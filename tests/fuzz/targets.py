"""Everything that reads what a user or a stranger wrote, each with the inputs that it is tried on."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzz import hostile, seeds, targets_results
from fuzz.target import Target


def _recipe_inputs() -> st.SearchStrategy:
    from spikesink.train.recipe import load_recipe

    good = load_recipe("nano").model_dump(mode="json")
    bent = hostile.bent_tree(good).map(lambda tree: yaml.safe_dump(tree).encode("utf-8", errors="surrogatepass"))
    text = hostile.yaml_text.map(lambda text: text.encode("utf-8", errors="surrogatepass"))
    return st.one_of(bent, text, hostile.bent_bytes(yaml.safe_dump(good).encode()))


def _read_recipe(content: bytes, folder: Path) -> None:
    from spikesink.train.recipe import load_recipe
    from spikesink.train.sharding import plan

    (folder / "recipe.yaml").write_bytes(content)
    recipe = load_recipe(folder / "recipe.yaml")
    recipe.to_yaml()
    plan(recipe, 8)


CHANGE_KEYS = ("model", "norm", "kind", "eps", "training", "steps", "data", "source", "betas", "0", "", "name", "x")


def _change_inputs() -> st.SearchStrategy:
    path = st.lists(st.sampled_from(CHANGE_KEYS), max_size=4).map(".".join)
    value = st.one_of(hostile.yaml_text, st.sampled_from(("dyt", "1e-3", "{kind: dyt, eps: 1}", "[1, 2]", "null")))
    return st.lists(st.builds("{}={}".format, path, value), max_size=3)


def _read_changes(changes: list[str], folder: Path) -> None:
    from spikesink.train.recipe import load_recipe

    load_recipe("nano", changes)


def _read_npy(content: bytes, folder: Path) -> None:
    from spikesink.data import check_ids, load_token_ids

    (folder / "ids.npy").write_bytes(content)
    check_ids(load_token_ids(folder / "ids.npy"), 97, 512)


def _text_reader(suffix: str) -> Callable[[bytes, Path], None]:
    def read(content: bytes, folder: Path) -> None:
        from spikesink.data import read_corpus, tokenise

        (folder / f"a{suffix}").write_bytes(content)
        tokenise(read_corpus(folder / f"a{suffix}"), seeds.word_tokenizer(), seq_len=3, sequences=50)

    return read


def _txt_inputs() -> st.SearchStrategy:
    return st.one_of(st.binary(max_size=300), hostile.bent_bytes(b"w3 w4 w5\nw6 \xc3\xa4 w7\n"))


def _weights_inputs() -> st.SearchStrategy:
    return hostile.bent_safetensors((seeds.checkpoint() / "model.safetensors").read_bytes())


def _jsonl_inputs() -> st.SearchStrategy:
    good = b'{"text": "w3 w4 w5 w6"}\n{"text": "w7 \\u00e4 w8 w9", "n": 1}\n\n{"text": "w1 w2 w3"}\n'
    row = hostile.bent_tree({"text": "w3 w4 w5", "more": [1, {"a": "b"}]}).map(
        lambda tree: hostile.as_json(tree) + b"\n"
    )
    return st.one_of(hostile.bent_bytes(good), st.lists(row, max_size=3).map(lambda rows: good + b"".join(rows)))


@cache
def odd_tokenizers() -> dict[str, Any]:
    """No BOS, BOS = EOS, BOS and EOS added by themselves, byte-level with added tokens, byte fallback."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    def fast(made: Any, **special: str) -> Any:
        return PreTrainedTokenizerFast(tokenizer_object=made, **special)

    def words() -> Any:
        made = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        return made

    both = words()
    both.add_special_tokens(["<s>", "</s>"])
    both.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    levels = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    levels.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    levels.decoder = decoders.ByteLevel()
    levels.add_tokens([AddedToken("<extra>", lstrip=True, rstrip=True), AddedToken("ab c", normalized=True)])
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "a": 257, "b": 258}
    fallback = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    return {
        "no BOS": fast(words(), unk_token="<unk>"),
        "BOS = EOS": fast(words(), bos_token="</s>", eos_token="</s>", unk_token="<unk>"),
        "BOS and EOS by itself": fast(both, bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
        "byte level, added tokens": fast(levels, bos_token="<extra>", eos_token="<extra>"),
        "byte fallback": fast(fallback, unk_token="<unk>"),
    }


def _tokenizer_inputs() -> st.SearchStrategy:
    piece = st.sampled_from(
        ("a", "b", " ", "<s>", "</s>", "<extra>", "ab c", "\u00e4", "\U0001f600", "\x00", "\u202e", "\n")
    )
    text = st.one_of(st.text(max_size=40), st.lists(piece, max_size=30).map("".join))
    return st.tuples(
        st.sampled_from(("no BOS", "BOS = EOS", "BOS and EOS by itself", "byte level, added tokens", "byte fallback")),
        st.lists(text, min_size=1, max_size=6),
        st.integers(2, 9),
        st.integers(1, 5),
        st.sampled_from(("auto", "always", "never")),
        st.booleans(),
    )


def _tokenise(given: tuple, folder: Path) -> None:
    from spikesink.data import Corpus, tokenise

    name, documents, seq_len, sequences, bos, pack = given
    tokenizer = odd_tokenizers()[name]
    corpus = Corpus("drawn", "txt", None, "drawn", lambda: iter(documents))
    made = tokenise(corpus, tokenizer, seq_len=seq_len, sequences=sequences, bos=bos, pack=pack)
    rows, length = made.ids.shape
    begin = tokenizer.bos_token_id
    assert length == seq_len and 1 <= rows <= sequences
    assert made.ids.min() >= 0 and made.ids.max() < len(tokenizer)
    if begin is not None:
        assert not ((made.ids[:, 0] == begin) & (made.ids[:, 1] == begin)).any(), f"a doubled BOS: {made.ids}"
        assert bos != "never" or pack or not (made.ids[:, 0] == begin).any()
        assert bos != "always" or (made.ids[:, 0] == begin).all()


def _render(template: str, folder: Path) -> None:
    from copy import copy

    from spikesink.data import prompt_corpus, tokenise

    tokenizer = copy(seeds.word_tokenizer())
    tokenizer.chat_template = template
    tokenise(prompt_corpus("w3 w4 w5"), tokenizer, seq_len=4, sequences=1, chat_template=True)


def _checkpoint_reader(name: str) -> Callable[[bytes, Path], None]:
    """A good checkpoint with one file of it replaced, scanned by its own tokenizer."""

    def read(content: bytes, folder: Path) -> None:
        from spikesink import scan
        from spikesink.access import load
        from spikesink.data import prompt_corpus, tokenise
        from spikesink.errors import InputError

        shutil.copytree(seeds.checkpoint(), folder / "model")
        (folder / "model" / name).write_bytes(content)
        accessed = load(folder / "model")
        if accessed.tokenizer is None:
            raise InputError("no tokenizer, as the command says")
        ids = tokenise(prompt_corpus("w3 w4 w5 w6"), accessed.tokenizer, seq_len=4, sequences=1)
        scan(accessed, ids).to_json()

    return read


def _tree_of(name: str) -> Callable[[], st.SearchStrategy]:
    def inputs() -> st.SearchStrategy:
        import json

        good = (seeds.checkpoint() / name).read_bytes()
        bent = hostile.bent_tree(json.loads(good)).map(hostile.as_json)
        return st.one_of(bent, bent, bent, hostile.bent_bytes(good))

    return inputs


def _index_inputs() -> st.SearchStrategy:
    shard = st.sampled_from(
        ("model.safetensors", "../model.safetensors", "/etc/passwd", "x.bin", "gone.safetensors", 5, None)
    )
    index = st.fixed_dictionaries({"metadata": st.just({}), "weight_map": st.dictionaries(st.text(max_size=9), shard)})
    return st.one_of(
        index.map(hostile.as_json), hostile.bent_tree({"metadata": {}, "weight_map": {"a": "b"}}).map(hostile.as_json)
    )


def _read_gguf(content: bytes, folder: Path) -> None:
    import os

    from spikesink.access import load

    (folder / "a.gguf").write_bytes(content)
    os.environ["SPIKESINK_CACHE"] = str(folder / "cache")
    load(folder / "a.gguf")


def _option_inputs() -> st.SearchStrategy:
    # An accepted choice should not take seconds; whole groups are run in other tests.
    known = ("zero_spikes", "mask-sinks", "mask_sinks", "drop_bos", "kv_cache")
    names = st.sampled_from((*known, "x", "", "\x00", "a" * 999))
    number = st.one_of(st.none(), st.floats(), st.sampled_from((0.0, -1.0, 1e-9, 1e30)))
    return st.tuples(
        st.lists(names, max_size=3).map(",".join),
        number,
        st.one_of(st.floats(), st.just(0.3)),
        st.sampled_from(("sun2026", "gu2025", "", "sun", "\x1b")),
        st.integers(-2, 2**40),
        st.sampled_from((None, 1, 2, 10**9)),
    )


@cache
def _small_case() -> tuple[Any, Any]:
    from tiny import tiny, token_ids

    from spikesink.access import access

    return access(tiny("llama", num_hidden_layers=1)), token_ids(6, 9)


def _intervene(given: tuple, folder: Path) -> None:
    from spikesink.analyse.interventions import dissociate

    which, magnitude, epsilon, metric, held_out, batch = given
    model, ids = _small_case()
    dissociate(
        model, ids, which=which or "mask_sinks", held_out=held_out, draws=1, epsilon=epsilon, sink_metric=metric,
        magnitude=magnitude, batch_size=batch, folder=folder,
    ).to_json()  # fmt: skip


def _bent_file(name: str) -> Target:
    return Target(f"checkpoint, {name}", _tree_of(name), _checkpoint_reader(name))


TARGETS = (
    *targets_results.TARGETS,
    Target("recipe, a YAML file", _recipe_inputs, _read_recipe),
    Target("recipe, --set", _change_inputs, _read_changes),
    Target("--tokens, a .npy", lambda: hostile.npy_file(), _read_npy),
    Target("--text, a .txt", _txt_inputs, _text_reader(".txt")),
    Target("--text, a .jsonl", _jsonl_inputs, _text_reader(".jsonl")),
    Target("--text, a .parquet", lambda: hostile.bent_bytes(seeds.parquet()), _text_reader(".parquet")),
    Target("odd tokenizers", _tokenizer_inputs, _tokenise),
    Target("chat template", lambda: hostile.chat_template, _render),
    _bent_file("config.json"),
    Target("checkpoint, weights", _weights_inputs, _checkpoint_reader("model.safetensors")),
    Target("checkpoint, index of shards", _index_inputs, _checkpoint_reader("model.safetensors.index.json")),
    _bent_file("tokenizer.json"),
    _bent_file("tokenizer_config.json"),
    Target("GGUF", lambda: hostile.bent_bytes(seeds.gguf(), header=6_000), _read_gguf),
    Target("options of intervene", _option_inputs, _intervene),
)
