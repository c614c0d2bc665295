"""What other tools' users type, what the help says, and what is refused before anything is loaded."""

import subprocess
import sys

import numpy as np
import pytest

from spikesink.measures import BUILT_IN
from spikesink.requirement import dtype_name

COMMANDS = ("scan", "intervene", "train", "graft", "study", "survey", "report", "verify")


def words(ran):
    return " ".join(ran.out.split())


def test_no_argument_shows_help_with_an_example_of_each_command(cli):
    ran = cli()
    assert "Usage" in ran.out + ran.err
    for command in COMMANDS:
        assert f"spikesink {command} " in ran.out + ran.err
    assert "intervene runs/" not in ran.out + ran.err, "a run's folder is no model"


@pytest.mark.parametrize("arguments", [("-h",), ("scan", "-h"), ("study", "-h")])
def test_short_help(cli, arguments):
    ran = cli(*arguments)
    assert ran.code == 0 and "Usage" in ran.out


def test_short_version_and_completion(cli):
    assert cli("-V").out.startswith("spikesink ")
    assert "--install-completion" in cli("--help").out


def test_the_help_offers_choices_and_no_values_for_flags(cli):
    said = words(cli("scan", "--help"))
    assert "auto|always|never|both" in said and "sun2026|gu2025" in said and "NAMES|all|help" in said
    assert "<bool> Concatenate" not in said and "NAME[@REVISION][:CONFIG[:SPLIT]]" in said


@pytest.mark.parametrize("command", ["scan", "intervene", "graft"])
def test_the_help_shows_how_a_data_set_is_named(cli, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert "NAME[@REVISION][:CONFIG[:SPLIT]]" in words(cli(command, "--help"))


def test_what_each_measure_answers(cli):
    ran = cli("scan", "no such model", "--measure", "help")
    assert ran.code == 0
    assert all(f"{name} " in ran.out for name in BUILT_IN) and words(ran).count("?") == len(BUILT_IN)


@pytest.mark.parametrize(
    ("option", "ours"),
    [("--limit", "--sequences"), ("--output_path=x", "--out"), ("--model_args", "MODEL"), ("--torch_dtype", "--dtype")],
)
def test_options_of_other_tools_get_ours(cli, option, ours):
    ran = cli("scan", option, "3")
    assert ran.code == 2 and f"here it is {ours}" in ran.err and len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bos", "allways"), "did you mean 'always'?"),
        (("--sink-metric", "sun2025"), "did you mean 'sun2026'?"),
        (("--measure", "amplifer"), "did you mean 'amplifier'?"),
        (("--epsilon", "2"), "between 0 and 1"),
        (("--dtype", "float31"), "did you mean 'float32'?"),
        (("--text", "nowhere.txt"), "No such file"),
        (("--tokens", "nowhere.npy"), "No such file"),
        ((), "nor in the cache, and HF_HUB_OFFLINE is set"),
    ],
)
def test_choices_are_refused_before_anything_is_loaded(cli, unloaded, options, message):
    ran = cli("scan", "no such model", *options)
    assert ran.code == 2 and message in ran.err


@pytest.mark.parametrize(("option", "value"), [("--bos", "auto,sometimes"), ("--seq-len", "64,1")])
def test_a_survey_names_the_option_that_is_wrong(cli, option, value):
    ran = cli("survey", "embedded", option, value)
    assert ran.code == 2 and f"Got {option} '" in ran.err and ".0" not in ran.err


IDS = ("--tokens", "ids.npy")


@pytest.mark.parametrize(
    ("arguments", "idle"),
    [
        (("scan", *IDS, "--seq-len", 64), "--seq-len"),
        (("scan", *IDS, "--pack", "--chat-template"), "--pack and --chat-template"),
        (("scan", *IDS, "--bos", "both"), "--bos"),
        (("scan", *IDS, "--field", "text"), "--field"),
        (("scan", "--prompt", "one two", "--sequences", 64), "--sequences"),
        (("scan", "--field", "text"), "--field"),
        (("scan", "--revision", "main"), "the revision 'main'"),
        (("intervene", "--which", "core", "--cache-seq-len", 512), "--cache-seq-len"),
        (("intervene", "--which", "none", "--dose", "default", "--draws", 2), "--draws"),
        (("intervene", *IDS, "--which", "kv_cache", "--cache-sequences", 6), "--cache-sequences"),
        (("graft", "--set", "norm=dyt", *IDS, "--seq-len", 128), "--seq-len"),
        (("study", "normalisation", "--gpus", 0), "--gpus"),
        (("study", "normalisation", "--executor", "ray", "--jobs", 2), "--jobs"),
        (("survey", "embedded", "--address", "auto"), "--address"),
        (("train", "--allow-changed-recipe"), "--allow-changed-recipe"),
        (("export", "run", "model", "--for", "json"), "'model'"),
        (("report", "run", "--format", "pdf"), "--format"),
        (("train", "--plan", "--json"), "--json"),
        (("train", "--show", "--out", "run"), "--out"),
        (("study", "normalisation", "--list", "--seeds", 3), "--seeds"),
        (("study", "--list", "--json"), "--json"),
        (("scan", "--measure", "help", "--json"), "--json"),
        (("scan", "--measure", "help", "--out", "q", "--sequences", 5), "--out and --sequences"),
        (("scan", "--json", "--force"), "--force"),
        (("intervene", "--force"), "--force"),
        (("verify", "--force"), "--force"),
    ],
)
def test_an_option_that_could_change_nothing_is_refused_though_it_says_the_default(cli, unloaded, arguments, idle):
    np.save("ids.npy", np.zeros((4, 8), dtype=np.int64))
    ran = cli(*arguments)
    assert ran.code == 2 and idle in ran.err and "out" in ran.err.split(".")[-2] and len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("scan", ""), "'' after scan"),
        (("scan", "--dtype", ""), "'' after --dtype"),
        (("scan", "--measure", " "), "' ' after --measure"),
        (("scan", "--out="), "'' after --out"),
        (("intervene", "--which", ""), "'' after --which"),
        (("survey", "embedded", "--revisions", ""), "'' after --revisions"),
        (("survey", "embedded", "--bos", ","), "',' after --bos"),
        (("study", "normalisation", "--only", ""), "'' after --only"),
    ],
)
def test_a_value_that_is_empty_is_refused(cli, unloaded, arguments, named):
    """As a variable of the shell that is not set makes it, which must not run the default."""
    ran = cli(*arguments)
    assert ran.code == 2 and f"Got {named}, which is empty" in ran.err and len(ran.err.splitlines()) == 1


def test_a_prompt_may_be_of_commas(cli, checkpoint):
    assert cli("scan", checkpoint, "--prompt", ", , , ,", "--json").code == 0


@pytest.mark.parametrize("command", ["intervene", "graft"])
def test_with_bos_and_without_is_of_scan_alone(cli, unloaded, command):
    ran = cli(command, *(("--set", "norm=dyt") if command == "graft" else ()), "--bos", "both")
    assert ran.code == 2 and "Got --bos 'both'; known: auto, always, never." in ran.err
    assert "both" not in words(cli(command, "--help")).partition("--bos")[2][:120]


def test_verify_says_that_it_writes_nothing_by_itself(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = words(cli("verify", "--help"))
    assert "without it none is written" in said and "runs/MODEL-TIME" not in said
    assert "runs/MODEL-TIME" in words(cli("scan", "--help"))


@pytest.mark.parametrize(("name", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16"), ("half", "float16")])
def test_dtypes_by_their_other_names(name, dtype):
    assert dtype_name(name) == dtype


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:7"])
def test_a_device_that_is_not_there_is_one_sentence_of_ours(cli, checkpoint, device):
    ran = cli("scan", checkpoint, "--device", device)
    assert ran.code == 2 and "is not one of this machine, which has cpu" in ran.err and "Torch" not in ran.err


def test_the_hub_out_of_reach_is_one_try_and_one_sentence(monkeypatch):
    from huggingface_hub import constants

    import spikesink
    from spikesink import reach
    from spikesink.data import hub_corpus
    from spikesink.errors import InputError, ModelError

    tried = []

    def refuse(address, timeout, **_):
        tried.append((address, timeout))
        raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reach.socket, "create_connection", refuse)
    with pytest.raises(ModelError, match="cannot be reached") as refusal:
        spikesink.load("nobody/no-such-model")
    assert len(tried) == 1 and tried[0][1] <= 2, "one try, and no other client tries on"
    assert "name no model for the embedded SmolLM2" in str(refusal.value)
    with pytest.raises(InputError, match=r"cannot be reached.*HF_HUB_OFFLINE=1"):
        hub_corpus("nobody/no-such-data")
    assert len(tried) == 2


def test_a_value_for_an_option_that_takes_none_is_not_taken_for_a_model(cli):
    ran = cli("scan", "--pack", "true")
    assert ran.code == 2 and "options such as --pack take no value" in ran.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["report", "--help"], ["study", "--list"], ["scan", "--measure", "help"]]
)
def test_what_needs_no_model_loads_no_torch(arguments):
    code = (
        f"import sys; sys.argv = ['spikesink', *{arguments!r}]\n"
        "from spikesink.cli.main import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'altair')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_a_warning_is_one_sentence():
    """Not the line of the code that says it."""
    code = (
        "import sys, warnings; sys.argv = ['spikesink', '--version']\n"
        "from spikesink.cli.main import run\n"
        "try: run()\n"
        "except SystemExit: warnings.warn('it is of another run', stacklevel=1)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.stderr == "warning: it is of another run\n"
