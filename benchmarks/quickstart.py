"""Time whole `llmtrainer quickstart` processes for several seeds, and print what each reached.

python benchmarks/quickstart.py [SEED ...]      (default: 0 1 2)
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median


def run(seed: int, folder: Path) -> dict:
    "The summary of one quickstart in a process of its own, with the wall time of the process."
    out, begun = folder / str(seed), time.perf_counter()
    command = "from llmtrainer.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", command, "quickstart", "--out", str(out), "--seed", str(seed)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads((out / "summary.json").read_text()) | {"wall": time.perf_counter() - begun}


def line(s: dict) -> str:
    "A summary as a row of the table."
    return (
        f"| {s['seed']} | {s['before']['accuracy']:.3f} | {s['after']['accuracy']:.3f} "
        f"| {s['p_value']:.1e} | {s['merge']['max_abs_logit_diff']:.1e} "
        f"| {s['onnx']['max_abs_logit_diff']:.1e} | {s['onnx']['same_text']} "
        f"| {s['stages']['train']:.0f} | {s['wall']:.0f} |"
    )


with tempfile.TemporaryDirectory() as folder:
    print(
        "| seed | before | after | p | merge | ONNX | same text "
        "| training and test, s | whole, s |\n"
        "|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    summaries = []
    for seed in map(int, sys.argv[1:] or (0, 1, 2)):
        summaries.append(run(seed, Path(folder)))
        print(line(summaries[-1]), flush=True)
    print(f"median wall time {median(s['wall'] for s in summaries):.0f} s")
