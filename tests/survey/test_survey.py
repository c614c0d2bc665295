"""A survey of tiny models in real processes: what it finds, takes over, refuses and tries again."""

import csv
import io
import json
import mmap
import shutil

import numpy as np
import pytest
from survey_rows import around, row, survey
from tiny import spiking, tiny, token_ids

from spikesink import scan
from spikesink.cli.survey import _spec
from spikesink.errors import InputError, ModelError
from spikesink.intervene.formats import round_to
from spikesink.records.interventions import Interventions
from spikesink.records.survey import ModelRows, SurveyRecord, moves
from spikesink.survey import cell as cells
from spikesink.survey import paper, run
from spikesink.survey.cell import failed, run_packed
from spikesink.survey.grid import Spec, asked, names, read_spec, step_of
from spikesink.survey.plan import Room, planned
from spikesink.survey.run import Survey


def quiet(stage, done, total):
    pass


class InProcess:
    """Runs jobs here; a process of their own takes longer to start than they take to measure."""

    def __init__(self, room):
        self.room, self.ran = room, []

    def machines(self, ask):
        return [ask()]

    def run(self, jobs, folder, progress):
        for job in jobs:
            self.ran.append((job.name, len(job.wanted)))
            with self.room.taken(job):
                record = run_packed(job.model_dump_json(), folder / job.name, progress)
            yield record


def surveyed(spec, out, **options):
    made = Survey(Spec.parse(spec), out, **options)
    executor = InProcess(made.room)
    return made.run(executor, quiet), executor.ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three architectures, one of them with a spike, and a run's checkpoints; the last is no checkpoint at all."""
    path = tmp_path_factory.mktemp("models")
    for name, model in {"spiking": spiking(), "gpt2": tiny("gpt2"), "gemma2": tiny("gemma2")}.items():
        model.save_pretrained(path / name)
    for step in (20, 100, 3):
        tiny("llama", seed=step).save_pretrained(path / "run" / f"checkpoint-{step}")
    (path / "broken").mkdir()
    (path / "broken" / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    for file in (path / "gpt2").glob("*.safetensors"):
        (path / "broken" / file.name).write_bytes(file.read_bytes())
    np.save(path / "ids.npy", token_ids(8, 24).numpy())
    np.save(path / "other.npy", token_ids(6, 16, seed=2).numpy())
    return path


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("survey")
    spec = {
        "models": [str(folder / "spiking"), str(folder / "gpt2"), str(folder / "gemma2"), str(folder / "broken"),
                   {"model": str(folder / "run"), "name": "run", "revisions": "all", "tokens_per_step": 5}],
        "texts": [str(folder / "ids.npy"), str(folder / "other.npy")],
    }  # fmt: skip
    return spec, out, *surveyed(spec, out)


def test_a_row_says_what_a_scan_finds(measured, folder):
    _, out, record, _ = measured
    scanned = scan(str(folder / "spiking"), np.load(folder / "ids.npy"))
    (row,) = (row for row in record.rows if row.model.endswith("spiking") and row.text.endswith("ids.npy"))
    assert (row.status, row.arrangement, row.blocks, row.vocab_size) == ("finished", "pre-norm", 6, 97)
    assert row.perplexity.value == pytest.approx(scanned.summary.perplexity, rel=1e-6)
    assert row.perplexity.low < row.perplexity.value < row.perplexity.high
    assert row.sink_ratio.value == pytest.approx(scanned.summary.sink_ratio, abs=1e-9)
    assert (row.spike, row.spike_channels) == (pytest.approx(scanned.summary.spike, rel=1e-6), [3])
    largest = [cycle.resid_top3[0].value for cycle in scanned.lifecycle.blocks]
    assert row.life_cycle == pytest.approx(largest, rel=1e-3)
    assert row.sequence_spike.value == pytest.approx(float(np.mean(naive_spikes(folder))), rel=1e-5)
    assert json.loads((out / row.folder / "anatomy.json").read_text())["summary"]["spike"] == row.spike


def naive_spikes(folder):
    """Largest magnitude after any block of each sequence, by hooks of the test's own on both residuals of a layer."""
    import torch

    model = spiking()
    largest = torch.zeros(8)

    def note(hidden):
        largest[:] = torch.maximum(largest, hidden.detach().abs().amax((1, 2)))

    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, given: note(given[0]))
        layer.register_forward_hook(lambda _, __, made: note(made[0] if isinstance(made, tuple) else made))
    model(torch.from_numpy(np.load(folder / "ids.npy")))
    return largest.numpy()


def test_a_refused_model_is_a_row_with_its_reason(measured):
    _, _, record, _ = measured
    broken = [row for row in record.rows if row.model.endswith("broken")]
    assert [row.status for row in broken] == ["refused", "refused"] and "encoder-decoder" in broken[0].error
    assert sum(row.status == "finished" for row in record.rows) == len(record.rows) - 2 == 12


def test_costs_are_those_of_interventions_and_of_plain_rounding(folder, tmp_path):
    spec = {
        "models": str(folder / "spiking"),
        "texts": str(folder / "ids.npy"),
        "measures": ["interventions", "rounding"],
    }
    (made,) = surveyed(spec, tmp_path)[0].rows
    record = Interventions.read(tmp_path / made.folder)
    costs = {row.name: row.loss_difference_nats for row in record.interventions}
    assert (made.zero_cost_nats, made.freeze_cost_nats) == (costs["zero_spikes"], costs["freeze_spikes"])
    plain = naive_losses(folder)
    for cost, name in ((made.int8_cost_nats, "int8 per tensor dynamic"), (made.fp8_cost_nats, "fp8 e4m3 per tensor")):
        rounded = naive_losses(folder, name)
        assert cost.value == pytest.approx(float((rounded - plain).mean()), rel=1e-3, abs=1e-6)
        assert cost.low <= cost.value <= cost.high


def test_experts_have_no_cost_of_rounding_and_a_reason(tmp_path):
    """What enters fused experts is not reached: the cost of the rest would be too small, in silence."""
    tiny("mixtral").save_pretrained(tmp_path / "mixtral")
    np.save(tmp_path / "ids.npy", token_ids(4, 7))
    spec = {"models": str(tmp_path / "mixtral"), "texts": str(tmp_path / "ids.npy"), "measures": "rounding"}
    (made,) = surveyed(spec, tmp_path / "out")[0].rows
    assert made.status == "finished" and made.int8_cost_nats is made.fp8_cost_nats is None
    assert made.rounding_missing.startswith("block 2 (layer 0, FFN) has no linear maps of its own")


def naive_losses(folder, name=None):
    """Nats of each sequence, with what enters every linear map but the head rounded by hooks of the test's own."""
    import torch

    model, ids = spiking(), torch.from_numpy(np.load(folder / "ids.npy"))

    def rounded(_, given):
        values = given[0].float()
        if name == "fp8 e4m3 per tensor":
            return round_to(values.flatten(0, -2), name)[0].view_as(values)
        scale = values.abs().max() / 127
        return (values / scale).round().clamp(-128, 127) * scale

    for path, module in model.named_modules() if name else ():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in path:
            module.register_forward_pre_hook(rounded)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1).numpy()


def test_checkpoints_come_in_the_order_of_their_steps(measured):
    _, _, record, _ = measured
    steps = [(row.revision, row.step, row.tokens_trained) for row in record.rows if row.model == "run"]
    assert steps[::2] == [("checkpoint-3", 3, 15), ("checkpoint-20", 20, 100), ("checkpoint-100", 100, 500)]


@pytest.mark.parametrize("tokens", [7, None])
def test_finished_rows_have_the_tokens_a_step_of_the_survey_that_is_asked_now(measured, tmp_path, tokens):
    """Nothing is measured again for it; a model that is not asked for stays as it is."""
    spec, out, before, _ = measured
    shutil.copytree(out, tmp_path / "again")
    *others, run = spec["models"]
    run = {name: value for name, value in run.items() if name != "tokens_per_step"}
    asked = {**spec, "models": [others[0], {**run, "tokens_per_step": tokens} if tokens else run]}
    record, _ = surveyed(asked, tmp_path / "again")
    rows = {row.key: row for row in record.rows}
    for old in before.rows:
        expected = tokens and old.step * tokens if old.model == "run" else old.tokens_trained
        assert rows[old.key] == old.model_copy(update={"tokens_trained": expected})


def test_a_model_is_loaded_once_for_two_texts(folder, tmp_path, monkeypatch):
    loaded = []
    original = cells.load
    monkeypatch.setattr(cells, "load", lambda *given, **more: loaded.append(more["dtype"]) or original(*given, **more))
    texts = [str(folder / "ids.npy"), str(folder / "other.npy")]
    spec = {"models": str(folder / "gpt2"), "texts": texts, "dtype": ["float32", "bfloat16"]}
    record, _ = surveyed(spec, tmp_path)
    assert len(record.finished()) == 4 and loaded == ["float32", "bfloat16"]
    assert {row.computed_in for row in record.rows} == {"float32", "bfloat16"}


def test_what_is_finished_is_not_run_again(measured):
    spec, out, record, ran = measured
    assert len(ran) == 7
    # A killed driver may have lost a record that a process had finished: the cells' own rows are taken over.
    (out / "models" / f"{ran[1][0]}.json").unlink()
    again, rerun = surveyed(spec, out)
    assert [name for name, _ in rerun] == [ran[1][0], ran[3][0]], "the lost one, and the refused one"
    assert again.rows == [
        row.model_copy(update={"seconds": mine.seconds}) for row, mine in zip(record.rows, again.rows, strict=True)
    ]


def test_a_failed_model_is_a_row_and_keeps_what_was_measured(folder, tmp_path):
    spec = Spec.parse({"models": str(folder / "gpt2"), "texts": [str(folder / "ids.npy"), str(folder / "other.npy")]})
    made = Survey(spec, tmp_path)
    (job,) = made._planned(quiet)
    half = job.model_copy(update={"wanted": job.wanted[:1]})
    run_packed(half.model_dump_json(), tmp_path / "runs" / job.name, quiet)
    lost = failed(job, "the process ended with -9", 2)
    assert [(row.status, row.error) for row in lost.rows] == [
        ("finished", None), ("failed", "the process ended with -9")
    ]  # fmt: skip


def test_what_cannot_be_planned_is_asked_for_once_more(folder, tmp_path, monkeypatch):
    asked = []

    def answers_late(source, revision, **more):
        asked.append(revision)
        if len(asked) == 1:
            raise ModelError("The hub did not answer.")
        return planned(source, revision, **more)

    monkeypatch.setattr(run, "planned", answers_late)
    model = {"model": str(folder / "run"), "revisions": ["checkpoint-20", "checkpoint-20", "checkpoint-100"]}
    jobs = Survey(Spec.parse({"models": [model], "texts": [str(folder / "ids.npy")]}), tmp_path)._planned(quiet)
    assert asked == ["checkpoint-20", "checkpoint-20", "checkpoint-100"] and len(jobs) == 2


def test_csv_and_parquet_hold_the_rows(measured):
    _, out, record, _ = measured
    rows = list(csv.DictReader(io.StringIO((out / "survey.csv").read_text())))
    assert [row["model"] for row in rows] == [row.model for row in record.rows]
    assert float(rows[0]["perplexity.value"]) == record.rows[0].perplexity.value and "perplexity" not in rows[0]
    import pandas

    assert pandas.read_parquet(out / "survey.parquet")["spike"].notna().sum() == 12
    assert len(record.to_dataframe("rows")) == 14 and len(scan_frame(out, record)) == 1


def scan_frame(out, record):
    from spikesink.records import Anatomy

    return Anatomy.read(out / record.rows[0].folder).to_dataframe()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"models": []}, "names no model"),
        ({"models": ["a/b", "a/b"]}, "'a/b' is named twice"),
        ({"models": ["a/b"], "measures": ["spin"]}, "Unknown measure 'spin'"),
        ({"models": ["a/b"], "bos": ["perhaps"]}, "bos"),
        ({"models": [{"model": "a/b", "dtipe": "float32"}]}, r"models\.0\.dtipe: no such option.*mean 'dtype'"),
        ({"models": ["a/b"], "texts": ["missing.txt"]}, "missing.txt"),
        ({"models": ["a/b"], "texts": ["default", "default"]}, "'default' is named twice"),
    ],
)
def test_bad_lists_are_refused_in_a_sentence(spec, message, tmp_path):
    with pytest.raises(InputError, match=message):
        surveyed(spec, tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"models": ["a/b"], "dtype": ["auto", "float31"]}, "Unknown dtype 'float31'.*mean 'float32'"),
        ({"models": [{"model": "a/b", "dtype": "int8"}]}, "Unknown dtype 'int8'"),
    ],
)
def test_a_dtype_that_is_not_known_is_refused_before_any_cell(spec, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        surveyed(spec, tmp_path)


def test_conditions_are_a_grid_and_ids_have_none():
    spec = Spec.parse(
        {"models": ["m"], "texts": ["default", "x/ids.npy"], "bos": ["auto", "never"], "seq_len": [64, 32],
         "chat_template": [False, True], "dtype": ["float32", "bfloat16"]}
    )  # fmt: skip
    cells = asked(spec, spec.models[0])
    assert len(cells) == 2 * 2 * 2 * 2 + 2
    assert {(cell.bos, cell.seq_len) for cell in cells if cell.text.ids} == {("as given", None)}


def test_names_are_as_long_as_they_must_be():
    spec = Spec.parse({"models": ["org/one", "/a/x/model", "/b/x/model", {"model": "/c/y/model", "name": "mine"}]})
    assert names(spec) == ["org/one", "a/x/model", "b/x/model", "mine"]
    assert (step_of("step1000"), step_of("checkpoint-20"), step_of("main"), step_of(None)) == (1000, 20, None, None)


class Wants:
    def __init__(self, weights, download=0):
        self.weights, self.download = weights, download


def test_two_models_run_only_where_memory_was_measured_to_suffice():
    room = Room(keep=False)
    room.memory, room.disk = 100, 50
    with room.taken(Wants(30)):
        assert not room._fits(Wants(30)), "nothing is known yet of what a process needs beside its weights"
        room.learn(Wants(30), 40)
        assert room._fits(Wants(50)) and not room._fits(Wants(51)), "30 + 10 and 50 + 10 are 100"
        assert not room._fits(Wants(None))
    with room.taken(Wants(1, download=30)):
        assert room._fits(Wants(1, download=20)) and not room._fits(Wants(1, download=21))
    assert "memory" in room.refusal(Wants(101)) and "disk" in room.refusal(Wants(1, download=51))
    kept = Room(keep=True)
    kept.memory, kept.disk = 100, 50
    assert kept.refusal(Wants(1, download=30)) is None
    assert "--no-keep" in kept.refusal(Wants(1, download=30)), "beside the first it does not fit"
    kept.measure([(100, 5), (80, 50)])
    assert [kept.refusal(Wants(99, download=30)) for _ in range(2)] == [None, None], "which disk fills is not known"
    assert "memory" in kept.refusal(Wants(101)) and "disk" in kept.refusal(Wants(1, download=51))


LLAMA = {"family": "llama", "blocks": 64, "d_model": 4096, "vocab_size": 32000}


def test_the_paper_is_set_beside_a_stand_in_with_its_config():
    planted = row("stand-in", **LLAMA, step_up_blocks=[4], step_down_blocks=[60], spike_channels=[2533, 7, 1415],
                  spike_vocabulary=31_700)  # fmt: skip
    other = row("other", **{**LLAMA, "vocab_size": 32001}, spike_channels=[1])
    by_figure = {line.what: line for line in paper.compared([planted, other])}
    assert {what: line.verdict for what, line in by_figure.items()} == {
        "step-up blocks": "agreed", "step-down blocks": "differs", "spike channels": "agreed",
        "vocabulary that spikes first": "differs",
    }  # fmt: skip
    assert (by_figure["step-down blocks"].paper, by_figure["step-down blocks"].ours) == ("62", "60")
    assert (
        "31,887" in by_figure["vocabulary that spikes first"].paper
        and "31,700" in by_figure["vocabulary that spikes first"].ours
    )
    assert all(line.of == "Llama-2-7B" for line in by_figure.values()) and len(paper.known()) == 7
    agreeing = row("q", family="qwen3", blocks=72, d_model=4096, vocab_size=151936, step_up_blocks=[14],
                   step_down_blocks=[72, 70], spike_vocabulary=151_500)  # fmt: skip
    assert [line.verdict for line in paper.compared([agreeing])] == ["agreed"] * 3


def test_a_figure_moved_where_neither_lies_in_the_others_interval():
    before = survey([row("a"), row("gone"), row("b", perplexity=around(10.0, 1.0))])
    after = survey(
        [row("a", perplexity=around(12.55), spike_channels=[5, 9]), row("b", perplexity=around(12.0, 0.5)), row("new")]
    )
    changes = [(move.model, move.what, move.before, move.after) for move in moves(before, after)]
    assert changes == [
        ("a", "spike_channels", "[5]", "[5, 9]"), ("gone", "row", "there", "missing"),
        ("b", "perplexity", "10 [9, 11]", "12 [11.5, 12.5]"), ("new", "row", "missing", "there"),
    ]  # fmt: skip


def test_the_command_and_the_comparison(cli, folder, tmp_path):
    out = tmp_path / "one"
    ran = cli("survey", folder / "spiking", tmp_path / "nowhere", "--text", folder / "ids.npy", "--out", out)
    assert ran.code == 2 and ran.err.count("error:") == 1 and "1 of 2 cells failed" in ran.err, ran.err
    assert "does not exist" in ran.err and "Traceback" not in ran.err and "spikes without sinks" in ran.out
    assert f"spikesinkcompare{out}LATER" in "".join(ran.out.replace("│", "").split()), "as it can be pasted"
    page = (out / "atlas.html").read_text()
    assert "Refused and failed" in page and "Every cell" in page and "spikesink compare one LATER" in page
    record = SurveyRecord.read_file(out / "survey.json")
    changed = record.rows[0].model_copy(update={"spike_channels": [4]})
    record.model_copy(update={"rows": [changed]}).write(tmp_path / "two" / "survey.json")
    compared = cli("compare", out, tmp_path / "two")
    assert compared.code == 0 and "spike channels" in compared.out and (tmp_path / "compare.html").exists()
    moved = json.loads(cli("compare", out, tmp_path / "two", "--json").out)
    assert [move["what"] for move in moved] == ["spike_channels", "row"]
    assert cli("survey", "--out", tmp_path / "three").code == 2


def test_an_option_of_the_command_goes_before_the_file(tmp_path):
    path = tmp_path / "survey.yaml"
    path.write_text("models: [a/one, {model: a/two, name: two}]\ntexts: [x/ids.npy, other.txt]\nseq_len: 32\n")
    spec = _spec([str(path)], ["step3"], {"texts": ["mine.txt"]})
    assert [text.path for text in spec.texts] == ["mine.txt"] and spec.seq_len == (32,)
    assert [(model.name, model.revisions) for model in spec.models] == [(None, ("step3",)), ("two", ("step3",))]


def test_an_option_goes_before_what_a_model_of_the_file_says(tmp_path):
    path = tmp_path / "survey.yaml"
    path.write_text("models: [a/one, {model: a/two, dtype: float32, texts: x.txt}]\n")
    (kept,) = _spec([str(path)], [], {"dtype": ["float64"]}).models[1].texts
    assert kept.path == "x.txt"
    spec = _spec([str(path)], [], {"texts": ["mine.txt"], "dtype": ["float64"]})
    cells = [asked(spec, model) for model in spec.models]
    assert cells[0] == cells[1] and [(cell.text_name, cell.dtype) for cell in cells[1]] == [("mine.txt", "float64")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"path": "t.txt", "dataset": "nobody/x"}, "got the path 't.txt' and the dataset 'nobody/x'"),
        ({"field": "body"}, "got the field 'body' without a path or dataset"),
        ({"path": "ids.npy", "field": "body"}, "'ids.npy' has no fields"),
        ({"path": "t.txt.gz", "field": "body"}, r"'t\.txt\.gz' has no fields"),
        ({"path": "ids.npy", "pack": True}, "got pack, but 'ids.npy' is token ids"),
    ],
)
def test_what_a_text_says_without_effect_is_refused_with_its_place(text, message, tmp_path):
    path = tmp_path / "survey.yaml"
    for content, place in (
        ({"models": ["a/b"], "texts": ["default", text]}, r"survey\.yaml\.texts\.1: "),
        ({"models": [{"model": "a/b", "texts": [text]}]}, r"survey\.yaml\.models\.0\.texts\.0: "),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=f"{place}.*{message}"):
            read_spec(path)


def test_what_a_text_says_with_effect_is_taken():
    texts = [{"path": "a.jsonl.zst", "field": "body", "pack": True}, {"dataset": "a/b", "field": "x"}, {"pack": True}]
    assert len(Spec.parse({"models": ["a/b"], "texts": [*texts, {"path": "saved", "field": "x"}]}).texts) == 4


def test_rows_of_an_earlier_survey_decide_no_exit_code(cli, folder, tmp_path, monkeypatch):
    # What does not fit is refused, which is a result, and takes no process.
    monkeypatch.setattr(run, "free", lambda: (1, 1))
    options = ("--text", folder / "other.npy", "--out", tmp_path / "out")
    assert cli("survey", tmp_path / "nowhere", *options).code == 2
    ran = cli("survey", folder / "gpt2", *options)
    assert ran.code == 0 and len(SurveyRecord.read_file(tmp_path / "out" / "survey.json").rows) == 2, ran.err
    ran = cli("survey", tmp_path / "nowhere", "--text", folder / "ids.npy", "--out", tmp_path / "out")
    assert ran.code == 2 and "1 of 1 cells failed" in ran.err


def test_a_damaged_record_is_said_and_made_again_from_the_cells(folder, tmp_path, capsys):
    texts = [str(folder / "ids.npy"), str(folder / "other.npy")]
    spec = {"models": [str(folder / "gpt2"), str(folder / "gemma2")], "texts": texts}
    before, _ = surveyed(spec, tmp_path)
    damaged = sorted((tmp_path / "models").glob("*.json"))
    for path in damaged:
        path.write_text(path.read_text()[:50])
    # One of them is no model of this survey.
    after, ran = surveyed({**spec, "models": spec["models"][1:]}, tmp_path)
    assert ran == [] and {row.key: row for row in after.rows} == {row.key: row for row in before.rows}
    said = capsys.readouterr().err
    assert all(f"'{path}' cannot be read and is now '{path.stem}.damaged'; the 2 rows" in said for path in damaged)
    assert all(len(path.with_suffix(".damaged").read_text()) == 50 for path in damaged)
    surveyed(spec, tmp_path)
    assert capsys.readouterr().err == ""


def test_rows_that_stay_although_their_model_is_gone_are_said(folder, tmp_path, capsys):
    tiny("gpt2").save_pretrained(tmp_path / "model")
    spec = {"models": {"model": str(tmp_path / "model"), "name": "mine"}, "texts": str(folder / "other.npy")}
    before, _ = surveyed(spec, tmp_path / "out")
    (tmp_path / "model" / "config.json").unlink()
    after, ran = surveyed(spec, tmp_path / "out")
    assert (after.rows, ran) == (before.rows, [])
    assert "mine: earlier rows stay (1), but were not looked at again: The folder" in capsys.readouterr().err


def test_a_comparison_of_surveys_leaves_no_folder_out(cli, tmp_path):
    for name in ("one", "two", "three"):
        survey([row("a")]).write(tmp_path / name / "survey.json")
    assert json.loads(cli("compare", "one", "two", "--json").out) == []
    for more in ("three", "run"):
        ran = cli("compare", "one", "two", more, "--json")
        assert ran.code == 2 and "two for what moved between them" in ran.err and ran.out == ""


def test_what_a_process_held_for_the_model_before_is_not_this_ones(folder, tmp_path):
    spec = {"models": [str(folder / "gpt2")], "texts": [str(folder / "other.npy")]}
    # A mapping of its own, which goes back when it is let go of; the heap may keep what earlier tests have freed.
    held = np.frombuffer(mmap.mmap(-1, 320_000_000))
    held += 1
    assert held.sum() and cells._peak_bytes() > held.nbytes
    before = cells._peak_bytes()
    del held
    surveyed(spec, tmp_path)
    (path,) = (tmp_path / "models").glob("*.json")
    peak = ModelRows.read_file(path).peak_bytes
    assert peak > 10**7 and (peak < before or not cells.CLEAR.exists())
