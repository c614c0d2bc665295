"""Makes the atlas of docs/survey.md: its models, the survey, the table on the page, and the screenshot.

Run: python docs/atlas.py (make atlas). Checkpoints and cells that are there are not made again. Models of studies and
grafts, too large to be kept beside their records, are measured where this machine has them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from spikesink.records.survey import SurveyRecord, SurveyRow
from spikesink.report.format import NONE, interval, listed, number, percent, signed

RECIPE = Path("results/recipes/atlas.yaml")
WORK, OUT, PAGE = Path("runs/atlas"), Path("results/survey"), Path("docs/survey.md")
BEGIN, END = "<!-- the table of make atlas -->", "<!-- end of the table -->"
SIZES = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 512}  # fmt: skip
TRAINING = ("training.steps=300", "training.batch_size=48", "running.save_every=30", "running.keep=40",
            "running.eval_every=0", "monitor.every=0")  # fmt: skip
SEEDS = (1, 2, 3)
"""Of a study, whose models are in the atlas."""


def make_models() -> None:
    """Three random decoders with their norms in different places, ids for them, and a short run's checkpoints."""
    for family in ("llama", "gemma2", "gpt_neox"):
        torch.manual_seed(0)
        sizes = {**SIZES, "num_key_value_heads": None} if family == "gpt_neox" else SIZES
        config = AutoConfig.for_model(family, **sizes)
        AutoModelForCausalLM.from_config(config).save_pretrained(WORK / f"tiny-{family}")
    np.save(WORK / "ids.npy", np.random.default_rng(0).integers(0, SIZES["vocab_size"], (32, 64)))
    if not (WORK / "sinks" / "training.json").exists():
        changes = [part for change in TRAINING for part in ("--set", change)]
        spikesink("train", "sinks", *changes, "--out", str(WORK / "sinks"))


def trained_here() -> list[dict[str, str]]:
    """Models of `spikesink study` (runs/STUDY/CELL) and of benchmarks/grafts.py (runs/grafts/NAME), on held-out ids."""
    cells = [cell for seed in SEEDS for cell in sorted(Path("runs").glob(f"*-*/*-{seed}/model"))]
    grafts = sorted(Path("runs/grafts").glob("*/healed/model")) + sorted(Path("runs/grafts").glob("*/control/model"))
    named = {f"{model.parts[1].partition('-')[2]}: {model.parts[2]}": model for model in cells}
    named |= {f"graft: {model.parts[-2 if 'control' in model.parts else -3]}": model for model in grafts}
    return [
        {"model": str(model), "name": name, "texts": str(model.parent / "held_out.npy")}
        for name, model in named.items()
    ]


def write_recipe() -> Path:
    """The survey's recipe with the models that only this machine has."""
    content = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    content["models"] += trained_here()
    path = WORK / "atlas.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def spikesink(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "spikesink", *arguments], check=True)


def row_of(row: SurveyRow) -> str:
    spike = f"{number(row.spike)}{'' if row.has_spikes else ' (none)'}"
    sinks = percent(row.sink_ratio.value) if row.sink_ratio else ""
    where = listed(row.step_up_blocks, 3) or NONE
    condition = row.condition.replace("runs/atlas/", "")
    costs = [
        signed(cost.value) if cost else NONE for cost in (row.zero_cost_nats, row.int8_cost_nats, row.fp8_cost_nats)
    ]
    cells = [row.label, condition, row.arrangement or "", number(row.max_over_median), spike, where, sinks,
             interval(row.perplexity), *costs]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def write_table(record: SurveyRecord) -> None:
    """The table of the page, between its marks."""
    head = ["| model | conditions | norms | max / median | spike | made by | sink ratio | perplexity | "
            "zeroing | int8 | fp8 |",
            f"|{' --- |' * 3}{' ---: |' * 8}"]  # fmt: skip
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = "\n".join([*head, *map(row_of, record.finished())])
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def take_picture(page: Path) -> None:
    """The first screens of the page, where there is a Chromium."""
    chromium = os.environ.get("SPIKESINK_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("No Chromium: docs/atlas.png stays as it is.", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1400, "height": 1500}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        shown.wait_for_selector("html[data-drawn]", state="attached", timeout=600_000)
        shown.screenshot(path="docs/atlas.png")
        browser.close()


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    make_models()
    spikesink("survey", str(write_recipe()), "--out", str(WORK / "survey"))
    OUT.mkdir(parents=True, exist_ok=True)
    for name in ("survey.json", "survey.csv"):
        shutil.copyfile(WORK / "survey" / name, OUT / name)
    write_table(SurveyRecord.read_file(OUT / "survey.json"))
    take_picture(WORK / "survey" / "atlas.html")


if __name__ == "__main__":
    main()
