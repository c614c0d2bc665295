"""Real quantisers beside our prediction: int8 of the embedded model in torchao, llm-compressor and ONNX Runtime.

Run: make serve-peer, which also makes their environments. Each quantiser is given what `spikesink export` writes, and
the loss of its model stands beside that of our simulation on the same tokens, in nats above the unquantised model.
Weights are int8 with a scale per output channel. A peer that is not installed is left out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "serve"
PLAIN = WORK / "plain.onnx"
BATCH = 16
"""Sequences at once: a dynamic scale per tensor depends on it."""
EVALUATED, HELD_OUT = 24, 16
CONFIGURATIONS = (
    "dynamic per tensor",
    "dynamic per tensor, ours left out",
    "dynamic per token",
    "static per tensor",
    "static per tensor, ours left out",
    "static per tensor, prefix",
    "static per tensor, smoothed",
    "static per tensor, rotated",
)
PROMPTS, PROMPT, NEW = 8, 16, 64
"""Texts to continue, their tokens, and the tokens to generate."""
GENERATED = "static per tensor"
"""Configuration whose greedy text is compared, with the prefix and without."""
PEERS = {
    "torchao": (sys.executable, WORK / "torchao"),
    "llm-compressor": (str(WORK / "llm-compressor" / "bin" / "python"), None),
    "onnxruntime": (str(WORK / "onnx" / "bin" / "python"), None),
}
"""By name: the Python that has it, and a folder that its path needs."""


def losses(forward, ids, prefix=0):
    """Mean loss in nats of each sequence; forward: ids (batch, token) -> logits (batch, token, vocabulary)."""
    import torch

    results = []
    for rows in ids.split(BATCH):
        with torch.no_grad():
            logits = forward(rows)[:, :-1].float()
        results += (-logits.log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]).mean(1).tolist()
    return results


def checkpoint(name):
    """A checkpoint of WORK, its ids to evaluate and to calibrate on."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(WORK / name, dtype=torch.float32, attn_implementation="eager").eval()
    return model, *(torch.from_numpy(np.load(WORK / f"{which}.npy")) for which in ("ids", "held_out"))


def prefix_cache(model, rows, states=None):
    """A fresh cache with the exported prefix; states: where its file was read already, as an export's tracing needs."""
    from safetensors.torch import load_file
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    states = load_file(WORK / "prefix.safetensors") if states is None else states
    for layer in range(model.config.num_hidden_layers):
        parts = (states[f"{name}.{layer}"].expand(rows, -1, -1, -1).clone() for name in ("keys", "values"))
        cache.update(*parts, layer)
    return cache


def with_prefix(model):
    """A forward of the model behind the exported prefix, which is never computed again."""
    from safetensors.torch import load_file

    states = load_file(WORK / "prefix.safetensors")
    return lambda ids: model(ids, past_key_values=prefix_cache(model, len(ids), states)).logits


def static_maxima(model, forward, held_out):
    """Largest magnitude that enters each linear map."""
    import torch

    largest = {}

    def note(name):
        def hook(_module, args):
            largest[name] = max(largest.get(name, torch.zeros(())), args[0].detach().abs().max())

        return hook

    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    handles = [module.register_forward_pre_hook(note(name)) for name, module in linears]
    losses(forward, held_out)
    for handle in handles:
        handle.remove()
    return largest


def behind(prompts, model, prefix):
    """Prompts (prompt, token), behind the exported prefix by its loader where asked for, and the arguments beside."""
    from spikesink.intervene.prefix import load_prefix

    if not prefix:
        return prompts, {}
    cache, ids = load_prefix(WORK / "prefix.safetensors", model, prompts)
    return ids, {"past_key_values": cache}


def greedy(model, prompts, prefix):
    """NEW greedy tokens (prompt, token)."""
    import torch

    ids, told = behind(prompts, model, prefix)
    told |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    return model.generate(ids, **told)[:, -NEW:]


def agreement(model, prompts, prefix, own, text):
    """Of NEW tokens of a text, in the mean: how many of the model's own are the same at first, and given the text."""
    import torch

    same = (own == text).int().cumprod(1)
    ids, told = behind(torch.cat([prompts, text], 1), model, prefix)
    if prefix:
        ids = ids[:, told["past_key_values"].get_seq_length() :]
    with torch.no_grad():
        following = model(ids, **told).logits[:, -NEW - 1 : -1].argmax(-1)
    return [float(each.sum(1).float().mean()) for each in (same, following == text)]


def compared_texts(quantised, prompts):
    """Greedy text of the quantised model beside that of the unquantised one; by name of the two, `agreement`.

    quantised: by whether behind the prefix, a model.
    """
    plain, *_ = checkpoint("model")
    texts = {prefix: greedy(plain, prompts, prefix) for prefix in (False, True)}
    results = {"unquantised, prefix | unquantised": agreement(plain, prompts, True, texts[True], texts[False])}
    for prefix, model in quantised.items():
        own = greedy(model, prompts, prefix)
        for reference in (False, True):
            names = (f"{GENERATED}{', prefix' * prefix}", f"unquantised{', prefix' * reference}")
            results[" | ".join(names)] = agreement(model, prompts, prefix, own, texts[reference])
    return results


# What each peer does, in its own process: configurations with their losses, one after another.


def exact_int_mm(rows, columns):
    """The integers of torch._int_mm, which takes single numbers in turn on CPUs without VNNI; doubles hold them all."""
    return (rows.double() @ columns.double()).int()


def torchao_peer():
    import torch
    from torchao.core.config import config_from_dict
    from torchao.quantization import Int8StaticActivationInt8WeightConfig, PerRow, PerTensor, quantize_

    extreme = torch.randint(-128, 128, (24, 1536), dtype=torch.int8)
    assert torch.equal(torch._int_mm(extreme[:8], extreme[8:].T), exact_int_mm(extreme[:8], extreme[8:].T))
    torch._int_mm = exact_int_mm
    advice = json.loads((WORK / "torchao-config.json").read_text())
    for name, left_out, per_token in (
        ("dynamic per tensor", {"lm_head"}, False),
        ("dynamic per tensor, ours left out", set(advice["left_out"]), False),
        ("dynamic per token", {"lm_head"}, True),
    ):
        model, ids, _ = checkpoint("model")
        config = config_from_dict(advice["config"])
        if per_token:
            config.granularity = [PerRow(), PerRow()]

        def chosen(module, where, left_out=left_out):
            return isinstance(module, torch.nn.Linear) and where not in left_out

        quantize_(model, config, chosen)
        yield name, losses(lambda rows, model=model: model(rows).logits, ids)
    quantised = {}
    for name, folder, left_out, prefix in (
        ("static per tensor", "model", {"lm_head"}, False),
        ("static per tensor, ours left out", "model", set(advice["left_out"]), False),
        ("static per tensor, prefix", "model", {"lm_head"}, True),
        ("static per tensor, smoothed", "smoothed", {"lm_head"}, False),
        ("static per tensor, rotated", "rotated", {"lm_head"}, False),
    ):
        model, ids, held_out = checkpoint(folder)
        forward = with_prefix(model) if prefix else lambda rows, model=model: model(rows).logits
        for where, largest in static_maxima(model, forward, held_out).items():
            if where not in left_out:
                config = Int8StaticActivationInt8WeightConfig(
                    act_quant_scale=(largest / 127).reshape(1, 1, 1), granularity=[PerTensor(), PerRow()]
                )
                quantize_(model, config, lambda _module, name, where=where: name == where)
        yield name, losses(forward, ids)
        if name in (GENERATED, f"{GENERATED}, prefix"):
            quantised[prefix] = model
    (WORK / "texts.json").write_text(json.dumps(compared_texts(quantised, ids[:PROMPTS, :PROMPT])))


def llm_compressor_peer():
    from llmcompressor import oneshot

    for name, recipe in (
        ("dynamic per tensor", "everything.yaml"),
        ("dynamic per tensor, ours left out", "recipe.yaml"),
        ("dynamic per token", "per_token.yaml"),
    ):
        model, ids, _ = checkpoint("model")
        oneshot(model=model, recipe=str(WORK / recipe))
        yield name, losses(lambda rows, model=model: model(rows).logits, ids)


def onnxruntime_peer():
    advice = json.loads((WORK / "torchao-config.json").read_text())
    for name, folder, left_out in (
        ("static per tensor", "model", {"lm_head"}),
        ("static per tensor, ours left out", "model", set(advice["left_out"])),
        ("static per tensor, prefix", "model", {"lm_head"}),
        ("static per tensor, smoothed", "smoothed", {"lm_head"}),
        ("static per tensor, rotated", "rotated", {"lm_head"}),
    ):
        yield name, quantised_onnx(folder, left_out, "prefix" in name)


@lru_cache(maxsize=1)
def exported_onnx(folder, prefix):
    """Write the checkpoint as plain.onnx; its ids to evaluate and to calibrate on, its linear maps by node."""
    import onnx
    import torch

    model, ids, held_out = checkpoint(folder)
    logits = with_prefix(model) if prefix else lambda rows: model(rows, use_cache=False).logits

    class Forward(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return logits(ids)

    with torch.no_grad():
        exported = torch.onnx.export(
            Forward(), (ids[:8],), dynamo=True, input_names=["ids"], output_names=["logits"], optimize=True
        )
    exported.save(PLAIN, external_data=False)
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    # Linear maps are called in the order in which a Llama lists them.
    graph = onnx.load(PLAIN).graph
    nodes = [node.name for node in graph.node if node.op_type == "MatMul" and node.name.startswith("node_linear")]
    return ids, held_out, dict(zip(nodes, linears, strict=True))


def quantised_onnx(folder, left_out, prefix):
    """Losses of the checkpoint in ONNX Runtime, the linear maps that are not left out in int8 between QDQ nodes."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    ids, held_out, linears = exported_onnx(folder, prefix)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(held_out.split(8))

        def get_next(self):
            rows = next(self.rows, None)
            return None if rows is None else {"ids": rows.numpy()}

    rounded = WORK / "int8.onnx"
    quantize_static(
        PLAIN, rounded, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
        nodes_to_quantize=[node for node, name in linears.items() if name not in left_out],
        # Else it also rounds what a linear map writes, which no other peer does.
        extra_options={
            "ActivationSymmetric": True, "WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )  # fmt: skip
    told = onnxruntime.SessionOptions()
    told.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))
    session = onnxruntime.InferenceSession(rounded, told)
    results = []
    for rows in ids.split(8):
        results += losses(lambda rows: torch.from_numpy(session.run(None, {"ids": rows.numpy()})[0]), rows)
    return results


# What this project says of the same.


def prepare(text):
    """The files that the peers read; the model and its ids to evaluate and to calibrate on."""
    import numpy as np
    import yaml

    from spikesink import dissociate, load
    from spikesink.access.linears import find_linears
    from spikesink.analyse.interventions import split
    from spikesink.analyse.remedies import largest_inputs
    from spikesink.cli.options import Text
    from spikesink.intervene.fold import rotated, smoothed
    from spikesink.report.export import export

    accessed = load()
    tokens = Text(text=text).read(accessed, EVALUATED + HELD_OUT)
    record = dissociate(
        accessed, tokens, which="none,quantisation,remedies", held_out=HELD_OUT, batch_size=BATCH, folder=WORK
    )
    record.save(WORK / "run", force=True)
    for tool, name in (
        ("torchao", "torchao-config.json"),
        ("llm-compressor", "recipe.yaml"),
        ("prefix", "prefix.safetensors"),
    ):
        (WORK / name).write_bytes(export(record, tool))
    recipe = yaml.safe_load((WORK / "recipe.yaml").read_text())
    modifier = recipe["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    for name, scale_of in (("everything.yaml", "tensor"), ("per_token.yaml", "token")):
        modifier["ignore"] = ["lm_head"]
        modifier["config_groups"]["group_0"]["input_activations"]["strategy"] = scale_of
        (WORK / name).write_text(yaml.safe_dump(recipe, sort_keys=False))
    ids, held_out = split(tokens, HELD_OUT)
    np.save(WORK / "ids.npy", ids.numpy())
    np.save(WORK / "held_out.npy", held_out.numpy())
    accessed.model.save_pretrained(WORK / "model")
    with smoothed(accessed, largest_inputs(accessed, find_linears(accessed), held_out)):
        accessed.model.save_pretrained(WORK / "smoothed")
    with rotated(accessed):
        accessed.model.save_pretrained(WORK / "rotated")
    return accessed, ids, held_out, record


def predicted(accessed, ids, held_out, record):
    """Our simulation of every configuration: {configuration: losses}, the unquantised model among them."""
    from contextlib import nullcontext

    from spikesink.access.linears import find_linears
    from spikesink.analyse.evaluation import evaluate
    from spikesink.analyse.remedies import largest_inputs
    from spikesink.intervene.fold import rotated, smoothed
    from spikesink.intervene.prefix import prefixed, spared_prefix
    from spikesink.intervene.quantise import Scheme, quantised_inputs, quantised_weights

    linears, prefix = find_linears(accessed), record.recommendation.prefix_ids
    entering = largest_inputs(accessed, linears, held_out)
    others = [site for site in linears if site.name not in record.recommendation.modules]
    contexts = {
        "prefix": lambda: prefixed(accessed, prefix),
        "smoothed": lambda: smoothed(accessed, entering),
        "rotated": lambda: rotated(accessed),
    }
    results = {"unquantised": evaluate(accessed, ids, batch_size=BATCH, loss_only=True).losses.tolist()}
    for name in CONFIGURATIONS:
        scales, _, remedy = name.partition(", ")
        sites = others if remedy == "ours left out" else linears
        context = contexts.get(remedy, nullcontext)
        ahead = remedy == "prefix"
        spared, kept = (spared_prefix(rows.shape, prefix) if ahead else None for rows in (ids, held_out))
        static = largest_inputs(accessed, linears, held_out, kept, context) if scales.startswith("static") else None
        scheme = Scheme(granularity=scales.split()[-1], static=static, spared_tokens=spared)
        with context(), quantised_weights(sites, 8), quantised_inputs(accessed, sites, scheme):
            results[name] = evaluate(accessed, ids, batch_size=BATCH, loss_only=True).losses.tolist()
    return results


def of_peer(name):
    """What a peer's own process measures, until an error if there is one; the reason where that is nothing."""
    python, folder = PEERS[name]
    if not Path(python).exists() or not (folder is None or folder.exists()):
        return "not installed"
    path = os.pathsep.join(filter(None, [str(folder) if folder else "", os.environ.get("PYTHONPATH", "")]))
    file = WORK / f"{name}.json"
    file.unlink(missing_ok=True)
    done = subprocess.run(
        [python, __file__, "--peer", name], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )
    why = f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    if done.returncode:
        print(f"{name} {why}", flush=True)
    return json.loads(file.read_text()) if file.exists() else why


def run_peer(measure, file):
    """Keep what a peer measured, after each configuration."""
    results, started = {}, time.perf_counter()
    for name, measured in measure():
        results[name] = measured
        file.write_text(json.dumps(results))
        print(f"{file.stem}: {name}, {time.perf_counter() - started:.0f} s", flush=True)


def table(ours, peers):
    """Costs in nats above the unquantised model, and the perplexity, as markdown."""
    import numpy as np

    def mean(losses):
        return float(np.mean(losses))

    def cell(losses):
        return "" if losses is None else f"{mean(losses) - base:+.3f} ({np.exp(mean(losses)):.1f})"

    base = mean(ours["unquantised"])
    ran = {name: result for name, result in peers.items() if isinstance(result, dict)}
    lines = [f"| int8, weights and inputs | predicted | {' | '.join(ran)} |", "| --- |" + " --- |" * (1 + len(ran))]
    for name in CONFIGURATIONS:
        cells = [cell(ours[name]), *(cell(result.get(name)) for result in ran.values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    gaps = {
        peer: {name: mean(each) - mean(ours[name]) for name, each in result.items()} for peer, result in ran.items()
    }
    for peer, by_name in gaps.items():
        name = max(by_name, key=lambda each: abs(by_name[each]))
        lines.append(f"{peer}: at most {abs(by_name[name]):.3f} nats from the prediction ({name}).")
    lines += [f"{name}: {result}" for name, result in peers.items() if name not in ran]
    if "torchao" in ran:
        lines += [
            "",
            f"| {NEW} greedy tokens, {PROMPTS} prompts | beside | same at first | same given its text |",
            "| --- " * 4 + "|",
        ]
        for pair, counts in json.loads((WORK / "texts.json").read_text()).items():
            lines.append(f"| {pair} | {' | '.join(f'{count:.1f}' for count in counts)} |")
    return f"Unquantised perplexity {np.exp(base):.2f}.\n\n" + "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="default: the English that every Python carries")
    parser.add_argument("--peer", choices=PEERS, help="for the process of a peer alone")
    asked = parser.parse_args()
    if asked.peer:
        measured = {"torchao": torchao_peer, "llm-compressor": llm_compressor_peer, "onnxruntime": onnxruntime_peer}
        run_peer(measured[asked.peer], WORK / f"{asked.peer}.json")
        return
    WORK.mkdir(parents=True, exist_ok=True)
    ours = predicted(*prepare(asked.text))
    (WORK / "ours.json").write_text(json.dumps(ours))
    print(table(ours, {name: of_peer(name) for name in PEERS}))


if __name__ == "__main__":
    main()
