"""Every graft of docs/graft.md on one model, each beside its seed's control.

Run: python benchmarks/grafts.py TEXT OUT [--seed S] [--only NAME ...] [--set RECIPE=VALUE ...] [--preset NAME]. Goes on
where an earlier call was stopped. A graft's record goes to OUT/records/NAME-S as soon as it is finished, its healed
model stays in OUT/S/NAME/healed/model, and OUT/grafts-PRESET.json judges all of them by the rules of studies. The
control of a seed is trained with the first graft that is run of it, and the others take it from there.
"""

import argparse
import os
import shutil
import time
from pathlib import Path

import torch

from spikesink.graft import GraftSettings, graft_and_heal
from spikesink.records.training import GraftRecord
from spikesink.study.grafts import study_of
from spikesink.study.run import rules_version

GRAFTS = {
    "sandwich": "arrangement=sandwich",
    "learned_sink": "normaliser=learned_sink",
    "off_by_one": "normaliser=off_by_one",
    "conditional_gate": "gate=conditional",
    "sandwich_qk": "arrangement=sandwich_qk",
    "post_norm": "arrangement=post",
    "no_input_norm": "arrangement=no_input",
    "dynamic_tanh": "norm=dyt",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="Of the order of the text.")
    parser.add_argument("--only", nargs="*", default=list(GRAFTS), choices=list(GRAFTS))
    parser.add_argument("--set", nargs="*", default=[], dest="changes", help="Of the recipe.")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=64, help="Held out.")
    parser.add_argument("--preset", help="What tells this study of grafts from others; default the model's name.")
    chosen = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    options = (
        f"training.seed={chosen.seed}", f"data.seed={chosen.seed}", f"running.threads={threads}",
        "training.precision=fp32",
        f"monitor.every={max(1, chosen.steps // 6)}", f"running.eval_every={max(1, chosen.steps // 3)}",
        *chosen.changes,
    )  # fmt: skip
    root = chosen.out / str(chosen.seed)
    for name in chosen.only:
        done = chosen.out / "records" / f"{name}-{chosen.seed}"
        if (done / "graft.json").exists():
            continue
        settings = GraftSettings(
            None, (GRAFTS[name], *options), text=chosen.text, steps=chosen.steps, seq_len=chosen.seq_len,
            sequences=chosen.sequences,
        )  # fmt: skip
        control = next((folder.parent for folder in root.glob("*/control") if folder.parent != root / name), None)
        record = graft_and_heal(settings, root / name, resume=True, control_from=control, progress=say)
        record.save(done, force=True)
        shutil.rmtree(root / name / "model", ignore_errors=True)
        judge(chosen.out / "records", chosen.out, chosen.preset)


def judge(folder: Path, out: Path, preset: str | None = None) -> None:
    """All grafts of a folder as one study, by the rules that it began with."""
    records = [GraftRecord.read(run.parent) for run in sorted(folder.glob("*/graft.json"))]
    path = out / f"grafts-{preset or records[0].model}.json"
    study_of(records, preset, rules_version(path)).write(path)


def say(stage: str, done: int, total: int) -> None:
    print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
