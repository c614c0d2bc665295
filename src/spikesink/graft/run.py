"""The whole of a graft: measure, replace, heal beside a control, measure again, export; every part is kept."""

import json
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikesink import bootstrap
from spikesink.access import AccessedModel, access
from spikesink.analyse.passes import default_batch_size
from spikesink.analyse.readings import anatomy_sums
from spikesink.analyse.rounding import rounding_costs
from spikesink.atomic import write_atomically
from spikesink.data.tokens import Tokens
from spikesink.errors import (
    DoesNotApplyError,
    InputError,
    NumericError,
    OutputError,
    UnsupportedModelError,
    VerificationError,
)
from spikesink.graft.settings import GraftSettings, graft_recipes
from spikesink.measure.perplexity import LossMeasure
from spikesink.observer import Observer, Progress, no_progress
from spikesink.records import Provenance, Timing, TrainingRun, package_versions
from spikesink.records.base import as_json
from spikesink.records.training import FunctionShift, GraftPoint, GraftRecord
from spikesink.train.checkpoints import folders
from spikesink.train.pretrained import CALIBRATION, EMBEDDED, loaded
from spikesink.train.recipe import Recipe, changed
from spikesink.train.run import CHECKPOINTS, MODEL, RECIPE, check_memory, fresh_model, train
from spikesink.train.sharding import meta_model
from spikesink.train.streams import Stream, open_stream
from spikesink.zoo import SpikesinkDecoderForCausalLM, export
from spikesink.zoo.convert import expressible


class FirstTokenNorms(Observer):
    """Norm of the first token's residual over the median token's, by block, summed over sequences."""

    def __init__(self) -> None:
        self.sums: dict[int, float] = {}
        self.sequences = 0

    def on_residual(self, block: int, hidden: Tensor) -> None:
        norms = hidden.float().norm(dim=-1)
        self.sums[block] = self.sums.get(block, 0.0) + float((norms[:, 0] / norms.median(1).values).sum())
        self.sequences += len(hidden) if block == 0 else 0

    def compute(self) -> float:
        """The largest mean over sequences among blocks."""
        return max(self.sums.values()) / self.sequences


def measure_point(model: PreTrainedModel, ids: Tensor, stage: str, progress: Progress) -> GraftPoint:
    """Measure one model on ids (sequence, token). Raises DoesNotApplyError, NumericError and VerificationError."""
    accessed = access(model)
    norms, losses = FirstTokenNorms(), LossMeasure()
    progress(stage, 0, 1)
    readings = anatomy_sums(accessed, ids, also=(norms, losses)).readings()
    progress(stage, 1, 1)
    per_sequence = losses.sequence_losses()
    rounded = rounding_costs(accessed, ids, per_sequence, progress=progress)
    return GraftPoint(
        perplexity=bootstrap.estimate(bootstrap.perplexity, losses.loss_sums, losses.predictions),
        losses_nats=per_sequence,
        spike=readings["spike"],
        max_over_median=readings["max_over_median"],
        norm_ratio=norms.compute(),
        sink_ratio=readings["sink_ratio"],
        first_key_importance=readings["first_token_importance"],
        int8_nats=rounded.int8,
        fp8_nats=rounded.fp8,
    )


@torch.no_grad()
def moved(before: PreTrainedModel, after: PreTrainedModel, ids: Tensor) -> FunctionShift:
    """How far apart two models of one device are on ids (sequence, token)."""
    total, kept, count = 0.0, 0, 0
    for batch in ids.to(before.device).split(default_batch_size(ids.shape[1])):
        one, other = (model(input_ids=batch, use_cache=False).logits.log_softmax(-1) for model in (before, after))
        total += float((one.exp() * (one - other)).sum())
        kept += int((one.argmax(-1) == other.argmax(-1)).sum())
        count += batch.numel()
    return FunctionShift(kl_nats=total / count, top1_kept=kept / count)


MOVED_SEQUENCES = 8
PARTS = ("original", "grafted", "healed", "control")
"""Folders of what is measured, each kept for the next run."""
IDENTITY = "made_of.json"
"""In each of them: what the part was made of, so that it is never taken for another graft's."""
Part = TypeVar("Part", GraftPoint, FunctionShift)


def graft_and_heal(
    settings: GraftSettings,
    out: Path,
    *,
    resume: bool = False,
    control: bool = True,
    control_from: Path | None = None,
    code: bool = False,
    progress: Progress = no_progress,
) -> GraftRecord:
    """Replace, heal and measure in `out`; returns the record that lies there.

    `out/model` is the healed model: of a plain family where one has these choices, else the zoo's own (with its source
    beside it if `code`). resume: go on with what an interrupted run left. control_from: the folder of an earlier graft
    of the same model and text with the same training, whose original and control are taken. A part that was made of
    anything else is refused. Raises InputError, OutputError.
    """
    started = time.perf_counter()
    healing, plain, replaced = graft_recipes(settings)
    if not resume and any((out / name).exists() for name in (GraftRecord.file, *PARTS)):
        raise OutputError(f"'{out}' already holds a graft; pass --resume to go on with it, or another --out.")
    if settings.steps:
        check_memory(healing)
    stream = open_stream(healing, progress)
    if settings.steps:
        _check_text(healing, stream)
    workspace = _Workspace(out, control_from, healing, plain, stream, progress)
    trainings = {"healed": healing, "control": plain} if control else {"healed": healing}
    trainings = trainings if settings.steps else {}
    workspace.claim(trainings)
    points: dict[str, GraftPoint] = {}
    failed: dict[str, str] = {}
    runs: dict[str, TrainingRun] = {}
    moves: dict[str, FunctionShift] = {}

    def attempt(name: str, make: Callable[[], Any], into: dict[str, Any]) -> None:
        try:
            into[name] = make()
        # A graft that cannot be trained or measured is a result, not a failure of the command.
        except (DoesNotApplyError, NumericError, VerificationError) as error:
            failed.setdefault(name, str(error))

    attempt("original", lambda: workspace.point("original", workspace.original), points)
    attempt("grafted", lambda: workspace.point("grafted", lambda: workspace.grafted), points)
    attempt("grafted", workspace.move, moves)
    if settings.steps:
        workspace.forget_grafted()
    for name, recipe in trainings.items():
        attempt(name, lambda name=name, recipe=recipe: workspace.heal(name, recipe), runs)
        if name in runs:
            attempt(name, lambda name=name: workspace.point(name, lambda: workspace.trained(name)), points)
    exported = None
    if "healed" in runs or not settings.steps:
        result = workspace.trained("healed") if settings.steps else workspace.grafted
        exported = _export(result, out, workspace.accessed.tokenizer, code)
    record = _record(workspace, settings.steps, replaced, points, failed, runs, moves.get("grafted"), exported, started)
    record.save(out, force=True)
    return record


class _Workspace:
    """One graft's folder, data and models; what was measured before is read, not measured again."""

    def __init__(
        self, out: Path, other: Path | None, healing: Recipe, plain: Recipe, stream: Stream, progress: Progress
    ) -> None:
        self.out, self.other, self.healing, self.plain, self.stream = out, other, healing, plain, stream
        self.progress = progress
        self.ids = torch.from_numpy(stream.held_out)

    @cached_property
    def accessed(self) -> AccessedModel:
        return loaded(self.healing.pretrained or EMBEDDED)

    def original(self) -> PreTrainedModel:
        return self.accessed.model

    @cached_property
    def grafted(self) -> SpikesinkDecoderForCausalLM:
        return fresh_model(self.healing, self.stream)

    def forget_grafted(self) -> None:
        """Training makes its own, and needs the memory."""
        self.__dict__.pop("grafted", None)

    def trained(self, name: str) -> SpikesinkDecoderForCausalLM:
        decoder: Any = SpikesinkDecoderForCausalLM.from_pretrained(self.folder(name) / MODEL)
        return decoder.to(self.accessed.device)

    def folder(self, name: str) -> Path:
        """Where this part lies: the control of another graft serves where it was trained alike."""
        return (self.other if self.other is not None and name in ("original", "control") else self.out) / name

    def claim(self, trainings: dict[str, Recipe]) -> None:
        """Say in the folder of every part what it is made of. Raises InputError where one is of something else."""
        made_of = self._made_of(trainings)
        # None is claimed where one is refused.
        new = [name for name, content in made_of.items() if not self._is_kept(name, content)]
        for name in new:
            self.folder(name).mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder(name) / IDENTITY, (json.dumps(made_of[name], indent=1) + "\n").encode())

    def _made_of(self, trainings: dict[str, Recipe]) -> dict[str, dict[str, Any]]:
        """By part, all that decides it: files and ids by their content, which a path does not name."""
        model, text, essence = self.accessed.provenance, self.stream.provenance, self.healing.essence()
        measured = {
            "model": {name: model.get(name) for name in ("file_sha256", "adapter")},
            "text": text["source_sha256"] or text["source_description"],
            "held_out": _ids_identity(self.stream.held_out),
        }
        first = _ids_identity(np.stack([self.stream.sample(index) for index in range(CALIBRATION)]))
        fitted = {"replacement": essence["model"], "seed": self.healing.training.seed, "first_samples": first}
        recipes = {name: {"recipe": recipe.essence(), "first_samples": first} for name, recipe in trainings.items()}
        return {name: {**measured, **own} for name, own in {"original": {}, "grafted": fitted, **recipes}.items()}

    def _is_kept(self, name: str, made_of: dict[str, Any]) -> bool:
        """Whether the part was begun before, of the same. Raises InputError where it is of something else."""
        folder = self.folder(name)
        try:
            kept = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if not any(folder.glob("[!.]*")):
                return False
            why = "does not say what it was made of, as parts made by an earlier version do not"
            raise self._refused(name, why) from None
        if kept != made_of:
            raise self._refused(name, f"was made of something else ({'; '.join(changed(kept, made_of))})")
        return True

    def _refused(self, name: str, why: str) -> InputError:
        """What is wrong with a part that lies there, and what to do."""
        folder = self.folder(name)
        option = "--out" if folder.parent == self.out else "--control-from"
        return InputError(f"'{folder}' {why}; use another {option}.")

    def point(self, name: str, model: Callable[[], PreTrainedModel]) -> GraftPoint:
        return _kept(
            self.folder(name) / "point.json",
            GraftPoint,
            lambda: measure_point(model(), self.ids, f"measure {name}", self.progress),
        )

    def move(self) -> FunctionShift:
        return _kept(
            self.folder("grafted") / "move.json",
            FunctionShift,
            lambda: moved(self.original(), self.grafted, self.ids[:MOVED_SEQUENCES]),
        )

    def heal(self, name: str, recipe: Recipe) -> TrainingRun:
        folder = self.folder(name)
        if (folder / TrainingRun.file).exists():
            run = TrainingRun.read(folder)
        else:
            run = train(recipe, folder, resume=(folder / RECIPE).exists(), progress=self.progress)
            for checkpoint in folders(folder / CHECKPOINTS):
                shutil.rmtree(checkpoint, ignore_errors=True)
        # A training opens its text itself, which may have been changed since.
        was, now = run.provenance.tokens["source_sha256"], self.stream.provenance["source_sha256"]
        if was != now:
            raise self._refused(name, f"was trained on a text of SHA-256 {was}, and is to be evaluated on {now}")
        return run


def _ids_identity(ids: np.ndarray) -> dict[str, Any]:
    """Which ids (sequence, token) they are."""
    said = Tokens.from_ids(ids).provenance()
    return {name: said[name] for name in ("sequences", "seq_len", "ids_sha256")}


def _kept(path: Path, kind: type[Part], make: Callable[[], Part]) -> Part:
    """What lies at the path, made and written there where it does not."""
    if path.exists():
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_json(made).encode())
    return made


def _check_text(recipe: Recipe, stream: Stream) -> None:
    """Refuse to heal on less than is evaluated."""
    trained, evaluated = int(stream.provenance["tokens"]), stream.held_out.size
    if trained < evaluated or recipe.tokens < evaluated:
        less = min(trained, recipe.tokens)
        raise InputError(
            f"Healing would see {less:,} tokens and be evaluated on {evaluated:,}; give a longer text, more --steps or "
            "fewer --sequences."
        )


def _export(decoder: SpikesinkDecoderForCausalLM, out: Path, tokenizer: Any, code: bool) -> str | None:
    try:
        family: str | None = expressible(decoder.config.decoder_spec).model_type
    except UnsupportedModelError:
        family = None
    if family is None and not code:
        decoder.save_pretrained(out / MODEL)
        if tokenizer is not None:
            tokenizer.save_pretrained(out / MODEL)
    else:
        export(decoder, out / MODEL, code=family is None, tokenizer=tokenizer)
    return family


def _record(
    workspace: _Workspace,
    steps: int,
    replaced: dict[str, Any],
    points: dict[str, GraftPoint],
    failed: dict[str, str],
    runs: dict[str, TrainingRun],
    move: FunctionShift | None,
    exported: str | None,
    started: float,
) -> GraftRecord:
    recipe = workspace.healing
    pair = [points[name].losses_nats for name in ("healed", "control") if name in points]
    old, new = _shapes(workspace.plain), _shapes(recipe)
    fresh = sum(shape.numel() for name, shape in new.items() if old.get(name) != shape)
    return GraftRecord(
        model=workspace.accessed.name,
        changed=replaced,
        parameters=sum(shape.numel() for shape in new.values()),
        new_parameters=fresh,
        steps=steps,
        tokens=recipe.tokens if steps else 0,
        tokens_per_s=runs["healed"].tokens_per_s if "healed" in runs else None,
        points=points,
        failed=failed,
        move=move,
        cost_nats=bootstrap.estimate(bootstrap.difference, *pair) if len(pair) == 2 else None,
        exported_as=exported,
        provenance=Provenance(
            model=workspace.accessed.provenance,
            tokens={
                **workspace.stream.provenance,
                "seq_len": recipe.data.seq_len,
                "evaluated": list(workspace.ids.shape),
            },
            versions=package_versions(),
            settings={
                "recipe": recipe.model_dump(mode="json"),
                "recipe_sha256": recipe.sha256(),
                "precision": recipe.precision,
            },
        ),
        timing=Timing.now(total_s=time.perf_counter() - started),
        arrays={
            f"{run}.{name}": values
            for run, done in runs.items()
            for name, values in done.arrays.items()
            if "layer_" not in name
        },
    )


def _shapes(recipe: Recipe) -> dict[str, torch.Size]:
    """Shapes of the parameters by name, a tied one once."""
    return {name: parameter.shape for name, parameter in meta_model(recipe).named_parameters()}
