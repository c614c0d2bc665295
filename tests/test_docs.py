"""The documentation: what it names exists, what it shows the tool made, and the site builds without a warning."""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import hooks
import pictures
import pytest
import tutorial
import typer
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CONCEPTS = sorted((DOCS / "concepts").glob("*.md"))
LARGEST_FIGURE = 100_000


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: str, language: str) -> list[str]:
    """Fenced code of a page under docs."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_tables_are_made_from_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def commands_of(page: Path) -> list[list[str]]:
    """Every `spikesink ...` line of a page's code, as arguments; a comment behind it does not count."""
    commands, fenced = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fenced ^= line.lstrip().startswith("```")
        code = line.strip().removeprefix("$ ")
        if (fenced or line.startswith("    ")) and code.startswith("spikesink "):
            commands.append(shlex.split(code.split("> ")[0], comments=True)[1:])
    return commands


COMMANDS = [(name_of(page), arguments) for page in PAGES for arguments in commands_of(page)]


@pytest.mark.parametrize(
    ("page", "arguments"), COMMANDS, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_every_command_line_is_one(page, arguments):
    """Parsed as the command line would, and not run: no option or argument is made up."""
    from spikesink.cli.main import app

    group = typer.main.get_command(app)
    name, *rest = arguments
    command = group.get_command(None, name)
    assert command is not None, f"{page}: no command '{name}'"
    with command.make_context(name, list(rest)) as context:
        assert context.command is command


def test_the_committed_studies_and_sweeps_say_what_their_records_say(tmp_path):
    """In the words and by the rules of now: `python tools/rejudge.py results` would change none of them."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "rejudge.py"), str(tmp_path / "results")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("says the same") > 20 and "judged anew" not in done.stdout, done.stdout


def test_the_tutorial_shows_what_its_commands_printed():
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    places = list(tutorial.PLACE.finditer(page))
    assert len(places) >= 5
    for place in places:
        opening, echo, *printed, closing = place["output"].strip().splitlines()
        assert (opening, echo, closing) == ("```text", f"$ {place['command']}", "```")
        assert len(printed) >= 2
        assert "Traceback" not in place["output"]
        assert max(map(len, printed)) <= 80


def test_the_tutorials_generator_fills_its_own_places_alone():
    page = "a\n<!-- run: spikesink one -->\nold\n<!-- end -->\nb\n<!-- run: spikesink two -->\n<!-- end -->\n"
    assert tutorial.commands(page) == ["spikesink one", "spikesink two"]
    filled = tutorial.filled(page, "spikesink two", tutorial.block("spikesink two", "printed"))
    kept = "a\n<!-- run: spikesink one -->\nold\n<!-- end -->\nb\n"
    assert filled == f"{kept}<!-- run: spikesink two -->\n```text\n$ spikesink two\nprinted\n```\n<!-- end -->\n"


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_a_page_begins_with_the_question_that_it_answers(page):
    """In its title, or in the first sentence under it."""
    title, first = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert title.startswith("# ") and (title.endswith("?") or "?" in first.split(". ")[0])


@pytest.mark.parametrize("page", CONCEPTS, ids=name_of)
def test_every_concept_has_its_picture_with_words_and_conditions(page):
    text = page.read_text(encoding="utf-8")
    names = pictures.shown(text)
    assert names
    for name in names:
        place = next(match[0] for match in pictures.PLACE.finditer(text) if match["name"] == name)
        words, file = re.search(r"!\[(.+)\]\(\.\./(.+\.svg)\)", place).groups()
        assert file == f"figures/{name}.svg"
        assert len(words) > 20
        assert "SmolLM2" in place and "tokens of" in place, "a caption says its conditions"
        svg = (DOCS / file).read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        assert len(svg) < LARGEST_FIGURE


def test_a_figure_is_placed_with_its_words_escaped():
    class Chart:
        title, caption, conditions = "Size", "a < b.", "3 tokens."
        alternative = "A line. The table below has every number. It rises."

    page = "x\n<!-- figure: one -->\nold\n<!-- end -->\ny"
    made = "![A line. It rises.](../figures/one.svg)\n\n**Size.** a &lt; b. 3 tokens."
    assert pictures.placed(page, {"one": Chart()}) == f"x\n<!-- figure: one -->\n{made}\n<!-- end -->\ny"
    assert pictures.shown(page) == ["one"]


def test_lists_without_a_blank_line_before_them_get_one():
    text = "Read:\n- one\n  more\n- two\n\n- three\n```\nx\n- code\n```\n1. first\n\ntext - no item\n"
    expected = "Read:\n\n- one\n  more\n- two\n\n- three\n```\nx\n- code\n```\n\n1. first\n\ntext - no item"
    assert hooks.on_page_markdown(text) == expected


def test_no_figure_is_left_over():
    """Every one is in the gallery, with what would be alarming; some stand on a page of a concept too."""
    gallery = (DOCS / "gallery.md").read_text(encoding="utf-8")
    named = pictures.shown(gallery)
    assert len(named) > 20 and gallery.count("\n*Alarming:* ") == len(named) == len(set(named))
    assert {name for page in CONCEPTS for name in pictures.shown(page.read_text(encoding="utf-8"))} <= set(named)
    assert {file.stem for file in (DOCS / "figures").iterdir()} == set(named)


def rows_of_the_map() -> list[list[str]]:
    lines = (DOCS / "paper-map.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in cells if row[2] not in ("function", "---")]


@pytest.mark.parametrize("row", rows_of_the_map(), ids=lambda row: f"{row[0]} {row[1][:30]}")
def test_the_map_of_the_paper(row):
    """Every function can be imported, every test is there, and the status is one of those that the page explains."""
    _, _, functions, tests, status = row
    named = re.findall(r"`(spikesink\.[\w.]+)`", functions)
    assert named
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(import_module(module), attribute)), name
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests):
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
    assert "::" in tests
    assert re.search(r"done|erratum|ours|GPU|differs", status)


def test_the_map_leaves_out_no_figure_or_table():
    figures, tables = ({row[0] for row in rows_of_the_map() if row[0] == str(n)} for n in (7, 9))
    assert figures and tables
    text = (DOCS / "paper-map.md").read_text(encoding="utf-8")
    parts = dict(zip(("equations", "figures", "tables", "claims"), text.split("\n## ")[1:], strict=True))
    for part, last in (("figures", 8), ("tables", 9), ("claims", 4)):
        first_cells = re.findall(r"^\| (\d+) \|", parts[part], re.MULTILINE)
        assert [int(number) for number in dict.fromkeys(first_cells)] == list(range(1, last + 1))


def test_fields_of_records_that_pages_name_exist():
    from spikesink import Anatomy

    kinds = {name: field.annotation for name, field in Anatomy.model_fields.items()}
    named = [
        (f"{page.name}: {section}.{field}", kinds[section], field)
        for page in PAGES
        for section, field in re.findall(r"\brecord\.(\w+)\.(\w+)", page.read_text(encoding="utf-8"))
        if hasattr(kinds.get(section), "model_fields")
    ]
    assert named, "no page names a field"
    for where, kind, field in named:
        assert field in kind.model_fields or hasattr(kind, field), where


def test_the_how_to_of_an_architecture(monkeypatch):
    """Its code block, on a model whose modules have the names that it gives."""
    from tiny import tiny

    import spikesink
    from spikesink.access import families

    my_model = tiny("llama")
    my_model.config.model_type = "my_model_type"
    for layer in my_model.model.layers:
        layer.norm_1, layer.norm_2 = layer.input_layernorm, layer.post_attention_layernorm
        layer.attention, layer.feed_forward = layer.self_attn, layer.mlp
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    code = next(code for code in blocks("howto/architecture.md", "python") if "import" in code)
    names = {"spikesink": spikesink, "my_model": my_model}
    exec(code, names)
    assert names["model"].layers[1].ffn.input_norm is my_model.model.layers[1].norm_2


def test_the_refusal_that_the_how_to_shows(monkeypatch):
    from tiny import tiny

    from spikesink.access import access, families
    from spikesink.errors import UnsupportedModelError

    monkeypatch.delitem(families.FAMILIES, "opt")
    monkeypatch.setattr(families, "GUESSES", (families.SEQUENTIAL,))
    shown = next(code for code in blocks("howto/architecture.md", "") if code.startswith("error: "))
    with pytest.raises(UnsupportedModelError) as refusal:
        access(tiny("opt"))
    assert str(refusal.value) == " ".join(shown.split()).removeprefix("error: ")


def test_the_how_to_of_a_study():
    from spikesink.study.grid import Grid, variant_changes
    from spikesink.train.recipe import load_recipe

    grid = Grid.parse(yaml.safe_load(blocks("howto/study.md", "yaml")[0]))
    base = load_recipe("nano")
    changes = {name: variant_changes(base, variant) for name, variant in grid.variants.items()}
    assert changes.pop("plain") == []
    assert all(changes.values())


class Loaded(HTMLParser):
    """What a page fetches by itself, and whether it has a script or font from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.sources.append(given["src"] or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon", "preload"):
            self.sources.append(given.get("href") or "")


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ROOT / "mkdocs.yml", "-d", site]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 2
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.sources
        assert not [source for source in loaded.sources if "//" in source], page.name
    reference = (site / "reference" / "spikesink.html").read_text(encoding="utf-8")
    assert "Measure spikes, sinks, life cycle and perplexity" in reference
    assert not list(site.rglob("*.py"))


INCLUDE = re.compile(r"^-+8-*<.*$|^.*-+8 *< *-+.*$", re.MULTILINE)
"""A line that includes a file, or that a formatter has made of one."""


@pytest.mark.parametrize("page", [page for page in PAGES if "8<" in page.read_text() or "8 <" in page.read_text()])
def test_every_include_is_one(page):
    """As the site reads it, of a file that is there; where a formatter puts blanks into it, the page shows the line."""
    for line in INCLUDE.findall(page.read_text(encoding="utf-8")):
        match = re.fullmatch(r'--8<-- "([\w/.]+)"', line)
        assert match, line
        assert (ROOT / match.group(1)).is_file(), line


PYTHON = [
    (name_of(page), code)
    for page in sorted(DOCS.rglob("*.md"))
    for code in blocks(page.relative_to(DOCS), "python")
    if page.name != "python.md"
]
"""Snippets that stand by themselves; those of python.md are run in order, in test_python_page.py."""


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=lambda part: part if part.endswith(".md") else part[:40])
def test_every_python_snippet_is_python_that_imports_what_it_uses(page, code):
    """It parses, what it imports is there, and what it takes from spikesink by attribute is there too."""
    if INCLUDE.search(code):
        return
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spikesink"):
            module = import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{page}: {node.module}.{alias.name}"
    uses = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree)
                if isinstance(node, ast.Import) for alias in node.names}  # fmt: skip
    assert "spikesink" not in uses or "spikesink" in imported, f"{page}: import spikesink is missing"


def test_the_picture_of_the_house_has_every_part_and_arrow():
    """Made by tools/architecture.py; only its line counts may be behind."""
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "tools" / "architecture.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def without_counts(text):
        return re.sub(r"\d+ modules?, [\d,]+ lines", "", text)

    drawn = {name for row in tool.ROWS for name in row}
    for name, paths in tool.parts().items():
        needs = set().union(*map(tool.imported, paths)) & drawn
        assert name in drawn or name.startswith("__") or not needs, f"{name} stands on {needs}: give it a box"
    made, kept = tool.picture(), (DOCS / "architecture.svg").read_text()
    assert without_counts(made) == without_counts(kept), "python tools/architecture.py"


def diff_of(heading: str) -> str:
    """The diff below a heading of the architecture page, hunks without their line numbers."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    return re.findall(r"^```diff\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0]


def with_diff(folder: Path, diff: str) -> Path:
    """A copy of the source with the diff in it."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for part in re.split(r"^(?=--- )", diff, flags=re.MULTILINE)[1:]:
        old, new, _, *lines = part.splitlines()
        path = folder / new.removeprefix("+++ b/")
        added = [line[1:] for line in lines if line.startswith("+")]
        if old.endswith("/dev/null"):
            path.write_text("\n".join(added) + "\n")
            continue
        context = "\n".join(line[1:] for line in lines if line[0] in " -")
        text = path.read_text()
        assert text.count(context) == 1, f"{path.name}: {context}"
        path.write_text(text.replace(context, "\n".join(line[1:] for line in lines if line[0] in " +")))
    return folder / "src"


def ran_with(source: Path, code: str) -> str:
    paths = os.pathsep.join(map(str, (source, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_measure_and_the_norm_that_the_architecture_page_adds(tmp_path):
    """Their diffs are all that is needed: the number is right, and terminal, page and notebook show it; a decoder with
    the norm is built, computes what the norm says and is measured."""
    source = with_diff(tmp_path, diff_of("Adding a measure") + diff_of("Adding a norm"))
    out = ran_with(
        source,
        "import torch, spikesink\n"
        f"assert spikesink.__file__.startswith({str(source)!r})\n"
        "from pathlib import Path\n"
        "from tiny import tiny, token_ids\n"
        "from spikesink.report.terminal import print_record\n"
        "model, ids = tiny('llama'), token_ids(3, 13)\n"
        "record = spikesink.scan(model, ids, measures=('tilt',))\n"
        "states = model(ids, output_hidden_states=True).hidden_states[1].float()\n"
        "from spikesink.zoo import DecoderSpec, build\n"
        "sizes = dict(vocab_size=97, d_model=24, n_layers=2, n_heads=3, n_kv_heads=3, d_head=8)\n"
        "spec = DecoderSpec.parse({**sizes, 'norm': 'unit'})\n"
        "given = torch.randn(2, 5, 24)\n"
        "by_hand = given / (given.square().mean(-1, keepdim=True) + 1e-5).sqrt()\n"
        "assert torch.allclose(spec.norm.build(24)(given), by_hand, atol=1e-6)\n"
        "assert spikesink.scan(build(spec), ids % 97).summary.spike > 0\n"
        "wanted = float((states.mean(-1).abs() / states.std(-1)).mean())\n"
        "assert abs(record.tilt.by_block[2] - wanted) < 1e-5 * wanted, (record.tilt, wanted)\n"
        f"folder = record.save(Path({str(tmp_path / 'run')!r}))\n"
        "from spikesink.report import write_page\n"
        "page = write_page([folder], folder / 'report.html').read_text()\n"
        "assert 'Tilt' in page and 'Tilt' in record._repr_html_()\n"
        "print_record(record)",
    )
    again = f"import spikesink; print(spikesink.Anatomy.read({str(tmp_path / 'run')!r}).tilt.by_block[2] > 0)"
    assert ran_with(source, again) == "True\n", "a record that is read knows the section by its file alone"
    assert "Tilt" in out and "2 0." in out
