#!/usr/bin/env python3
"""What every format loses on three trained models: runs `qins eval` and prints the tables of docs/quality.md.

  python3 tests/quality.py QINS REFERENCE_DATA WORK_DIR [MODEL ...]

QINS: the built program. REFERENCE_DATA: the folder with `models/docs-lm`, `models/stories260k` and `text/wikitext-2`.
WORK_DIR keeps the texts and every command's JSON: what is there already is not run again. About half an hour on two
cores.
"""
import json
import subprocess
import sys
from pathlib import Path

qins, data, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
work.mkdir(parents=True, exist_ok=True)
FORMATS = "f16 fpins:2 bf16 q12 q8h q8 fpins:1 log8 q6 q4 q3 q2".split()


def call(*words):
    return subprocess.run([qins, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True).stdout


def told(model, prompt):
    """Text that the model draws itself at temperature 1: there it is as sure as it was trained to be."""
    path = work / f"{Path(model).name}.txt"
    if not path.exists():
        words = ["generate", model, "-p", prompt, "-n", 480, "--temperature", 1, "--ignore-eos", "--seed"]
        path.write_text("".join(call(*words, seed) for seed in range(32)))
    return path


def measured(name, *words):
    path = work / f"{name.replace(':', '')}.json"
    if not path.exists():
        path.write_text(call("eval", *words, "--json"))
    return json.loads(path.read_text())


def share(estimate, digits=2):
    error = estimate["standard_error"]
    return f"{100 * estimate['value']:.{digits}f}" + ("" if error is None else f" ± {100 * error:.{digits}f}") + " %"


def row(name, fmt, model, text, windows):
    words = [model, "--format", fmt, "--text", text]
    compared = measured(f"{name}-{fmt}-compare", "compare", *words, "--windows", windows)
    wrote = measured(f"{name}-{fmt}-greedy", "greedy", *words, *PROMPTS)
    about, c, g = compared["model"], compared["result"], wrote["result"]
    ratio, kl = c["perplexity_ratio"], c["kl_nats"]
    change, error = 100 * (ratio["value"] - 1), 100 * ratio["standard_error"]
    prefix = g["identical_prefix_tokens_mean"]
    ties = g["first_difference_near_ties"]
    return [
        f"`{fmt}`",
        f"{about['bits_per_weight']:.2f}",
        f"{about['weight_bytes'] / 1e6:.2f}",
        f"{round(change, 3) + 0:+.3f} ± {error:.3f} %" if abs(change) < 10 else f"{change:+.1f} ± {error:.1f} %",
        f"{kl['mean']['value']:.1e} ± {kl['mean']['standard_error']:.0e}",
        f"{kl['quantile_99_9']['value']:.1e}",
        share(c["same_top1"]),
        share(c["top10_overlap"], 1),
        f"{prefix['value']:.0f} ± {prefix['standard_error']:.0f}",
        "none" if ties is None else f"{100 * ties['value']:.0f} %",
        share(g["teacher_forced_match"], 1),
    ]


HEAD = ["format", "bits a weight", "MB", "perplexity", "KL, nats", "99.9 % of KL", "same top token", "top 10 in common",
        "identical tokens", "near-ties", "forced match"]
docs, stories = data / "models/docs-lm", data / "models/stories260k"
PROMPTS = ["--prompts", 10, "--tokens", 200]
MODELS = {
    "demo": ("demo", lambda: told("demo", "Once upon a time"), 32),
    "stories260k": (stories, lambda: told(stories, "Once upon a time"), 32),
    "docs-lm": (docs, lambda: data / "text/wikitext-2/test.txt", 16),
}
for name in sys.argv[4:] or MODELS:
    model, text, windows = MODELS[name]
    rows = [row(name, fmt, model, text(), windows) for fmt in FORMATS]
    float_ = measured(f"{name}-q8-compare")
    reference, about = float_["result"]["reference_perplexity"], float_["reference"]
    perplexity = reference["perplexity_per_token"]
    print(f"\n`{name}`, {about['weights'] / 1e6:.2f} million weights, {about['weight_bytes'] / 1e6:.2f} MB in f32; float "
          f"perplexity {perplexity['value']:.3f} ± {perplexity['standard_error']:.3f} over "
          f"{reference['predicted_tokens']} tokens\n")
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for cells in rows:
        print("| " + " | ".join(cells) + " |", flush=True)
