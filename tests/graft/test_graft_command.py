"""`spikesink graft` on the command line, its page and what it says."""

import json

import pytest
from test_graft_run import FAST, checkpoint, text  # noqa: F401

from spikesink.records.intervals import Estimate
from spikesink.records.training import GraftPoint, GraftRecord
from spikesink.report.graft import _points, cost_words, sink_words, spike_words


def test_command(cli, checkpoint, text):  # noqa: F811
    sets = [word for change in ("arrangement=pre_qk", *FAST) for word in ("--set", change)]
    options = ["--text", text, "--steps", "6", "--seq-len", "16", "--sequences", "3", "--out", "out"]
    ran = cli("graft", checkpoint, *sets, *options)
    assert ran.code == 0, ran.err
    assert "What came back" in ran.out
    assert "plain qwen3" in ran.out
    assert "Page: out/report.html" in ran.err
    again = cli("graft", checkpoint, *sets, *options)
    assert (again.code, "--resume" in again.err) == (2, True)
    resumed = cli("graft", checkpoint, *sets, *options, "--resume", "--json")
    assert json.loads(resumed.out)["kind"] == "graft"
    assert cli("report", "out", "--figures", "figures").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Nothing is replaced"),
        (("--set", "arrangement=sandwich"), "text of its own"),
        (("--set", "arrangement=sandwich", "--text", "TEXT"), "max_positions 48"),
        (("--set", "arrangement=pre", "--text", "TEXT", "--seq-len", 16), "nothing to graft"),
    ],
)
def test_one_sentence_and_code_2(cli, checkpoint, text, arguments, message):  # noqa: F811
    ran = cli("graft", checkpoint, *(text if argument == "TEXT" else argument for argument in arguments))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def point(norm_ratio: float, sink_ratio: float) -> GraftPoint:
    one = Estimate(value=1.0, low=0.9, high=1.1)
    return GraftPoint(
        perplexity=one, losses_nats=[1.0], spike=1.0, max_over_median=2.0, norm_ratio=norm_ratio,
        sink_ratio=sink_ratio, first_key_importance=0.1, int8_nats=one, fp8_nats=one,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("norms", "sinks", "said"),
    [
        ((177.0, 1.1), (0.05, 0.76), ("The spike is gone", "The sinks are gone")),
        ((177.0, 98.0), (0.70, 0.76), ("The spike is still there", "The sinks are kept")),
        ((177.0, 9.9), (0.38, 0.76), ("The spike is gone", "The sinks are fewer")),
        ((2.0, 1.5), (0.1, 0.0), ("There was no spike to lose", "The control has no sinks")),
    ],
)
def test_the_sentences_follow_from_the_numbers(norms, sinks, said):
    points = {"original": point(norms[0], 0.7), "healed": point(norms[1], sinks[0]), "control": point(9.0, sinks[1])}
    record = GraftRecord.model_construct(points=points)
    assert spike_words(record).startswith(said[0])
    assert sink_words(record).startswith(said[1])


def test_cost():
    assert cost_words(Estimate(value=0.3, low=0.2, high=0.4)).startswith("It costs +0.3")
    assert cost_words(Estimate(value=0.1, low=-0.2, high=0.4)).startswith("No cost can be told")
    gain = cost_words(Estimate(value=-0.3, low=-0.4, high=-0.2))
    assert gain == "It gains 0.30 [0.20, 0.40] nats of held-out loss beside the control."


def test_a_note_in_the_terminal_is_of_columns_that_are_there():
    table = _points(GraftRecord.model_construct(points={}))
    assert "first key" not in table.note.lower() and "fp8" not in table.note
    assert all(name in (table.note + table.aside).lower() for name in ("norm ratio", "first key", "int8", "fp8"))
