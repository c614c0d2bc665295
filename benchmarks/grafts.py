"""Every graft of docs/graft.md on one model with one control.

Run: python benchmarks/grafts.py TEXT OUT [STEPS [BATCH [NAME ...]]]. Goes on where an earlier call was stopped; a
graft's record goes to OUT/records/NAME as soon as it is finished, its healed model stays in OUT/NAME/healed/model. The
control is trained with the first graft: others by name need it.
"""

import shutil
import sys
import time
from pathlib import Path

import torch

from spikesink.graft import GraftSettings, graft_and_heal

GRAFTS = {
    "sandwich": "arrangement=sandwich",
    "learned_sink": "normaliser=learned_sink",
    "off_by_one": "normaliser=off_by_one",
    "conditional_gate": "gate=conditional",
    "dynamic_tanh": "norm=dyt",
    "sandwich_qk": "arrangement=sandwich_qk",
    "post_norm": "arrangement=post",
    "no_input_norm": "arrangement=no_input",
}
SEQ_LEN, SEQUENCES = 64, 24
"""Of what is evaluated, and of what is trained on."""


def main() -> None:
    text, out = Path(sys.argv[1]), Path(sys.argv[2])
    steps, batch = (int(argument) for argument in [*sys.argv[3:], "150", "16"][:2])
    torch.set_num_threads(1)
    options = (
        f"training.batch_size={batch}", "running.threads=1", f"monitor.every={max(1, steps // 3)}",
        "monitor.sequences=4", f"running.eval_every={max(1, steps // 2)}",
    )  # fmt: skip
    first = out / next(iter(GRAFTS))
    for name in sys.argv[5:] or GRAFTS:
        folder, change = out / name, GRAFTS[name]
        if not (out / "records" / name / "graft.json").exists():
            settings = GraftSettings(
                None, (change, *options), text=text, steps=steps, seq_len=SEQ_LEN, sequences=SEQUENCES
            )
            control = None if folder == first else first
            record = graft_and_heal(settings, folder, resume=True, control_from=control, progress=say)
            record.save(out / "records" / name, force=True)
            shutil.rmtree(folder / "model", ignore_errors=True)


def say(stage: str, done: int, total: int) -> None:
    print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
