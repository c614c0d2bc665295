"""Adding an intervention is the lines that docs/interventions.md shows, and nothing else."""

import re
from pathlib import Path

from hand_llama import Hand
from planted import EDIT_BLOCK, close

from spikesink.analyse.interventions import parse_which
from spikesink.intervene import INTERVENTIONS, elements

PAGE = Path(__file__).parents[2] / "docs" / "interventions.md"


def test_the_diff_of_the_page_adds_an_intervention(case, monkeypatch):
    (diff,) = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    context = "\n".join(line[1:] for line in lines if line.startswith(" "))
    assert context in Path(elements.__file__).read_text(encoding="utf-8")
    exec("\n".join(line[1:] for line in lines if line.startswith("+")), {**vars(elements)})
    made = INTERVENTIONS.pop("halve_spikes")
    monkeypatch.setitem(INTERVENTIONS, made.name, made)
    assert made.summary == "Halve every spike element after the step-up block."
    assert parse_which("halve_spikes").interventions == (made,)

    def halved(block, hidden):
        return hidden / (1 + (hidden.abs() >= case.targets.magnitude_min)) if block == EDIT_BLOCK else hidden

    assert close(case.logits(made(case.accessed, case.targets)), Hand(case.model, residual=halved)(case.ids))
