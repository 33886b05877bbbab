#!/usr/bin/env python3
"""Containers at Phi-3.5's size: converts, verifies, runs and exports synthetic checkpoints, and prints what it measured.

  python3 tests/full_size.py QINS REFERENCE_DATA [WORK_DIR]

QINS: the built program. REFERENCE_DATA: the folder with `fixtures/phi35-mini-config` and `reference`. Needs numpy and
safetensors, 12 GB of disk and a few minutes; a checkpoint already in WORK_DIR is used again. Fails if a bound is missed.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open

qins, data = sys.argv[1], Path(sys.argv[2])
work = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp())
sys.path.insert(0, str(data / "reference"))
failures = []


def run(*arguments):
    result = subprocess.run([qins, *map(str, arguments), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def show(name, value, limit=None):
    ok = limit is None or value <= limit
    if not ok:
        failures.append(name)
    print(f"{name:<58} {value:>16,.2f}" + ("" if limit is None else f"  (at most {limit:,})") + ("" if ok else "  MISSED"))


def checkpoint(name, *options):
    directory = work / name
    if not (directory / "config.json").exists():
        maker = data / "fixtures/phi35-mini-config/make_synthetic_phi35.py"
        subprocess.run([sys.executable, maker, directory, *options], check=True, stdout=subprocess.DEVNULL)
    return directory


full, container = checkpoint("full"), work / "full-q8"
made = run("convert", full, "-o", container, "--force")
show("container, bytes", made["bytes"], 4_100_000_000)
show("bits a weight", made["bits_per_weight"])
show("convert, peak resident bytes", made["peak_rss_bytes"], 1_500_000_000)
show("convert, seconds", made["convert_s"])
verified = run("verify", container)
show("verify, peak resident bytes", verified["peak_rss_bytes"])
answer = run("generate", container, "--ids", "1,2,3,4,5,6,7,8", "-n", 16, "--ignore-eos")
show("generate 16, peak resident bytes", answer["peak_rss_bytes"], made["bytes"] + 500_000_000)
show("generate 16, load seconds", answer["timings"]["load_s"])
show("generate 16, seconds a token", answer["timings"]["generate_s"] / 15)

# Two layers: exported weights against the reference's decoding of the same codes.
import qins_reference as reference  # noqa: E402

small, coded, plain = checkpoint("small", "--layers", "2"), work / "small-q8", work / "small-export"
run("convert", small, "-o", coded, "--force")
run("export", coded, "-o", plain, "--force")
wrong = compared = 0
with safe_open(coded / "qins.safetensors", "np") as codes, safe_open(plain / "model.safetensors", "np") as floats:
    tensors = json.loads(codes.metadata()["qins"])["tensors"]
    for name, tensor in tensors.items():
        if "code" not in tensor:
            continue
        rows, cols = tensor["shape"]
        code, groups = tensor["code"], -(-cols // 32)
        signed = codes.get_tensor(name + ".codes")[: rows * cols].reshape(rows, cols)
        signed = reference.grouped(signed, 32)
        scales = codes.get_tensor(name + ".scales")[: rows * groups].reshape(rows, groups)
        table = reference.projective_table(code["k"], 128)
        decoded = reference.decode_signed(np.float32(code["base"]), scales, signed & 127, signed >> 7 == 1, table, cols)
        decoded = decoded.astype(np.float32)
        compared += 1
        wrong += not np.array_equal(decoded.view(np.uint32), floats.get_tensor(name).view(np.uint32))
show("exported tensors compared with the reference", compared)
show("exported tensors that differ", wrong, 0)
sys.exit(f"missed: {', '.join(failures)}" if failures else 0)
