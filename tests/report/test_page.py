"""The page as a file: self-contained, safe, small, the same each time, and refused where it would destroy something."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from made import HOSTILE, MEASURES, anatomy, interventions, study, training

from spikesink.errors import InputError, OutputError, RecordError
from spikesink.report import write_figures, write_page
from spikesink.report.build import runs_document
from spikesink.report.conditions import mind
from spikesink.report.interventions import cost_text
from spikesink.report.page import embedded_json


class Reader(HTMLParser):
    """Elements with their attributes, and what scripts and styles hold."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.inside, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        last = self.elements[-1][0] if self.elements else ""
        if last in ("script", "style") and self.inside and self.get_starttag_text().startswith(f"<{last}"):
            self.inside[-1][2] += data
        self.words.append(data)


@pytest.fixture(scope="module")
def text(run, tmp_path_factory):
    return write_page([run], tmp_path_factory.mktemp("page") / "report.html").read_text()


def test_nothing_comes_from_elsewhere(text):
    for tag, attrs in Reader(text).elements:
        for name in ("src", "href", "action", "poster", "data", "srcset"):
            value = attrs.get(name)
            assert value is None or value.startswith("#"), f"<{tag} {name}={value}>"
        assert not any(name.startswith("on") or name == "style" for name in attrs), f"<{tag} {attrs}>"
    assert "@import" not in text.split("</style>")[0] and "url(" not in text.split("</style>")[0]


def test_the_policy_lets_run_what_the_page_holds_and_nothing_else(text):
    reader = Reader(text)
    content = next(
        attrs["content"] for tag, attrs in reader.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert content.startswith("default-src 'none';") and "unsafe" not in content and "http" not in content

    def digest(body):
        return "'sha256-" + base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() + "'"

    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(scripts) == 2 and len(styles) == 1
    policy = dict(part.strip().split(" ", 1) for part in content.split(";") if " " in part.strip())
    assert policy["script-src"].split() == [digest(script) for script in scripts]
    assert policy["style-src"].split() == [digest(style) for style in styles]


def test_the_answer_comes_first(text):
    words = re.sub(r"\s+", " ", text)
    assert words.index("The largest magnitude is 500 in channel 5") < words.index('<h2 id="lifecycle-title">')
    assert words.index('id="conditions"') > words.index('<h2 id="kv-cache-title">')


def test_every_chart_is_there_with_its_data(text):
    data = json.loads(
        re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text, re.DOTALL).group(1)
    )
    ids = re.findall(r'data-figure="(\w+)"', text)
    assert sorted(ids) == sorted(data["figures"]) and len(ids) == len(set(ids)) >= 20
    sinks = data["figures"]["sink_map"]
    assert len(sinks["rows"]) == 6 and len(sinks["columns"]) == len(sinks["rows"][0])
    assert data["heads"]["strongest"] == "1-1" and len(data["heads"]["facts"]) == 6
    packed = data["heads"]["importance"]["3-1"]
    assert [value * packed["unit"] for value in packed["values"]] == pytest.approx([0.1, 0.7, *[0.01] * 4], abs=4e-4)


def test_hostile_text_is_never_markup(tmp_path):
    anatomy(name=HOSTILE, text=HOSTILE).save(tmp_path)
    interventions(name=HOSTILE, text=HOSTILE).save(tmp_path)
    text = write_page([tmp_path], tmp_path / "report.html").read_text()
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "<img" not in markup and "{{7*7}}" in markup and 'onerror="' not in markup
    tags = {tag for tag, _ in Reader(text).elements}
    assert "img" not in tags
    assert text.count("<script") == 3 and text.lower().count("</script") == 3


def test_json_in_a_script_cannot_end_it():
    text = embedded_json({"<!--</script>": "]]>&\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"<!--</script>": "]]>&\u2028"}


def test_a_large_model_stays_under_five_megabytes(tmp_path):
    record = anatomy(layers=32, heads=32, d=4096, seq=64, vocabulary=32000)
    kinds = record.arrays["geometry.head_kinds"]
    import numpy as np

    many = np.repeat([0, 1, 2], 24).astype(kinds.dtype)
    points = np.random.default_rng(0).normal(size=(32, 32, 72, 2)).astype(np.float32)
    record.arrays.update({"geometry.head_points": points, "geometry.head_kinds": many})
    record.save(tmp_path)
    interventions().save(tmp_path)
    size = write_page([tmp_path], tmp_path / "report.html").stat().st_size
    assert 1_000_000 < size < 5_000_000


def test_the_same_records_give_the_same_page(run, tmp_path):
    one, two = (write_page([run], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_no_torch_no_model(run, tmp_path):
    code = (
        "import sys\nfrom spikesink.report import write_page\n"
        f"write_page([{str(run)!r}], {str(tmp_path / 'page.html')!r})\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_records_draws_nothing():
    code = "import sys, spikesink.records, spikesink.report, spikesink.cli.main\nsys.exit('altair' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_page_replaces_a_page_and_nothing_else(run, tmp_path):
    page = write_page([run], tmp_path / "report.html")
    write_page([run], page)
    page.write_text("my thesis")
    with pytest.raises(OutputError, match="no page of spikesink's"):
        write_page([run], page)
    assert page.read_text() == "my thesis"
    with pytest.raises(OutputError, match="is a folder"):
        write_page([run], tmp_path)


def test_what_is_no_run(tmp_path):
    with pytest.raises(RecordError, match=r"holds no record; expected a folder with one of anatomy\.json"):
        write_page([tmp_path], tmp_path / "report.html")
    with pytest.raises(RecordError, match="does not exist"):
        write_page([tmp_path / "nowhere"], tmp_path / "report.html")


def test_a_scan_alone_says_what_is_missing(tmp_path):
    anatomy(measures=()).save(tmp_path)
    text = write_page([tmp_path], tmp_path / "report.html").read_text()
    assert f"{', '.join(MEASURES)}: <code>spikesink scan made/model --measure all</code>" in text
    assert "The amplifier" not in text, "one line for all of them, not a box each"
    assert "Not measured; <code>spikesink intervene made/model</code> <button" in text
    assert "figure-lifecycle_residual" in text and "figure-amplifier_norms" not in text


def test_no_spikes_and_no_sinks_is_a_page_too(tmp_path):
    anatomy(spikes=False, sinks=False, measures=()).save(tmp_path)
    text = write_page([tmp_path], tmp_path / "report.html").read_text()
    assert "No spikes." in text and "No sinks." in text and "No token reaches the rule for spikes." in text
    assert "figure-lifecycle_shares" not in text


def test_two_models_are_compared(tmp_path):
    anatomy(name="one/a").save(tmp_path / "a")
    anatomy(name="two/b", layers=4, spikes=False).save(tmp_path / "b")
    training(name="third").save(tmp_path / "c")
    text = write_page([tmp_path / name for name in "abc"], tmp_path / "report.html").read_text()
    assert "one/a, two/b and third" in text
    assert "1 of 2 scans finds spikes: one/a." in text
    assert "figure-compare_lifecycle" in text and "figure-training_loss" in text and "figure-sink_map" not in text


def test_different_conditions_are_named(tmp_path):
    anatomy(name="a").save(tmp_path / "a")
    other = anatomy(name="b").model_dump(by_alias=True)
    other["provenance"]["tokens"]["bos_added"] = True
    type(anatomy()).model_validate({**other, "arrays": anatomy().arrays}).save(tmp_path / "b")
    text = write_page([tmp_path / "a", tmp_path / "b"], tmp_path / "report.html").read_text()
    assert "These conditions differ, so numbers may differ for that reason alone: BOS." in text


def under(record, **tokens):
    provenance = record.provenance.model_copy(update={"tokens": {**record.provenance.tokens, **tokens}})
    return record.model_copy(update={"provenance": provenance})


def test_a_scan_and_interventions_of_one_folder_say_which_conditions_differ(tmp_path):
    scanned, changed = anatomy(), interventions()
    sinks = {"sinks": scanned.provenance.settings["sinks"]}
    other = under(changed, sequences=40, ids_sha256="other")
    assert other.provenance.settings["sinks"] == sinks["sinks"] and mind([scanned, other]) == []
    assert mind([changed, other])[0].text.endswith("alone: sequences and token ids.")
    scanned.save(tmp_path)
    under(changed, sequences=40, bos_added=True).save(tmp_path)
    said = runs_document([tmp_path]).statements[-1]
    assert (said.heading, said.text.rpartition(": ")[2]) == ("Mind", "BOS.")


def test_records_of_two_kinds_say_what_each_is(tmp_path):
    anatomy(name="one/a", spikes=False).save(tmp_path / "a")
    interventions(name="two/b").save(tmp_path / "b")
    said = {each.heading: each for each in runs_document([tmp_path / "a", tmp_path / "b"]).statements}
    assert said["Records"].text == "one/a: a scan; two/b: interventions."
    assert said["Spikes"].text == "The scan of one/a finds no spikes."
    assert said["Sinks"].text == "The scan of one/a finds sinks."
    assert said["What breaks without them"].points == ("two/b: sinks need spikes.",)


def test_interventions_are_compared_by_what_int8_costs(tmp_path):
    record = interventions(name="one/a")
    site = record.quantisation.sites[0]
    cache = site.model_copy(update={"kind": "kv"})
    planted = {"sites": [site, cache], "worst_modules": ["layers.0.mlp.down_proj"], "skipped": ["ffn_in: it is fused"]}
    quantised = record.quantisation.model_copy(update=planted)
    record.model_copy(update={"quantisation": quantised}).save(tmp_path / "a")
    interventions(name="two/b", parts=False).save(tmp_path / "b")
    document = runs_document([tmp_path / "a", tmp_path / "b"])
    rows = {row[0]: row[1:] for row in document.sections[0].tables[0].rows}
    cost = cost_text(site.loss_difference_nats)
    assert rows["int8 per tensor, worst input, nats"] == [f"down_proj {cost}", "–"]
    assert rows["KV cache in int8 per tensor, nats"] == [cost, "–"]
    assert rows["where it breaks"][0] == "block 2 (layer 0, FFN)"
    assert rows["linear maps there"][0] == "layers.0.mlp.down_proj"
    assert rows["what mends it best, nats"][0].startswith("spike tokens kept +")
    assert rows["linear maps not measured"] == ["ffn_in", "–"]


def test_the_same_model_twice_is_told_apart_by_folder(tmp_path):
    for name in ("first", "second"):
        anatomy().save(tmp_path / name)
    text = write_page([tmp_path / "first", tmp_path / "second"], tmp_path / "report.html").read_text()
    assert "made/model (first) and made/model (second)" in text


@pytest.mark.parametrize(("file_format", "starts"), [("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_figures_for_a_paper(tmp_path, file_format, starts):
    anatomy(measures=("amplifier",)).save(tmp_path / "run")
    files = write_figures([tmp_path / "run"], tmp_path / "figures", file_format)
    assert {file.name for file in files} == {
        f"{name}.{file_format}"
        for name in ("lifecycle_residual", "lifecycle_write", "lifecycle_shares", "sink_map", "head_importance",
                     "amplifier_norms", "amplifier_spectra")
    }  # fmt: skip
    for file in files:
        content = file.read_bytes()
        assert content.startswith(starts) and len(content) > 2000


def test_a_study_page_by_file_by_folder_of_cells_and_by_folder(tmp_path):
    file = study().write(tmp_path / "made-nano.json")
    (tmp_path / "made-nano").mkdir()
    pages = [
        write_page([path], tmp_path / "report.html").read_text() for path in (file, tmp_path / "made-nano", tmp_path)
    ]
    assert pages[0] == pages[1] == pages[2]
    words = re.sub(r"\s+", " ", pages[0])
    assert (
        "Spikes go, sinks stay.</strong> sandwich (spike × 0.03 falls) and gate (spike × 0.03 falls); 2 of 2" in words
    )
    assert "2 of 2 variants, against baseline." in words
    assert "Claim 1 supported.</strong> They come apart. 2 variants." in words
    assert '<td class="n">44 % ± 4 % (3)</td>' in words and '<td class="n">3,818</td>' in words
    assert "× 0.03 [0.02, 0.05] falls" in words and "sandwich, 1 diverged" in words and "sandwich-3: diverged" in words


def test_several_studies_on_one_page(tmp_path):
    files = [study(name).write(tmp_path / f"{name}.json") for name in ("one", "two")]
    text = write_page(files, tmp_path / "report.html").read_text()
    assert "one at nano and two at nano" in text and "figure-study_two_nano_plane" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_a_study_without_results_says_so(tmp_path):
    study(seeds=0, variants={"baseline": (1.0, 0.1)}, claim="not tested").write(tmp_path / "s.json")
    assert "No variant has finished beside the baseline." in write_page([tmp_path], tmp_path / "p.html").read_text()


def test_a_study_of_a_hostile_name_stays_in_its_folder(tmp_path):
    study("../../" + HOSTILE).write(tmp_path / "s.json")
    files = write_figures([tmp_path / "s.json"], tmp_path / "figures")
    assert len(files) >= 6 and all(file.parent == tmp_path / "figures" and file.exists() for file in files)
    text = write_page([tmp_path / "s.json"], tmp_path / "report.html").read_text()
    assert all(re.fullmatch(r"[\w-]+", name) for name in re.findall(r' id="([^"]*)"', text))


def test_studies_and_models_do_not_mix(tmp_path, run):
    study().write(tmp_path / "s.json")
    with pytest.raises(InputError, match="holds no study, others do"):
        write_page([tmp_path, run], tmp_path / "report.html")
