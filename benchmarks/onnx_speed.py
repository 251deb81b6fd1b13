"""Tokens a second of an ONNX export beside PyTorch's eager `generate`, on 2 threads of a CPU.

    python benchmarks/onnx_speed.py RUN    # a run, as `llmtrainer quickstart` leaves it

The runs alternate and are short, so that other work on the machine meets all of them alike. The
median is what a busy machine gives, the best what a quiet one would; each with its ratio to
`generate` of transformers."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from llmtrainer.ship.export import export_onnx  # isort: skip; it bounds OpenMP's spins, for torch

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from llmtrainer.ship.onnx_generator import Settings, Writer
from llmtrainer.ship.quantized_export import quantize_graph

THREADS, PROMPT, TOKENS, SECONDS = 2, 30, 16, 80


def eager_seconds(model, rows: np.ndarray) -> float:
    "How long transformers' `generate` takes for all tokens."
    ids = torch.from_numpy(rows)
    length = dict(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    began = time.perf_counter()
    mask = torch.ones_like(ids)
    model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **length)
    return time.perf_counter() - began


def graph_seconds(writer: Writer, rows: np.ndarray) -> float:
    "How long the graph's writer takes."
    began = time.perf_counter()
    for _ in writer.write(rows.tolist(), Settings(max_new_tokens=TOKENS)):
        pass
    return time.perf_counter() - began


def main(run: Path) -> None:
    torch.set_num_threads(THREADS)
    source, rng = run / "exports" / "merged", np.random.default_rng(0)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    work = Path(tempfile.mkdtemp())
    export_onnx(source, work / "float32")
    for name in ("int8", "int4"):
        quantize_graph(work / "float32", work / name, name)
    writers = {name: Writer(work / name, THREADS) for name in ("float32", "int8", "int4")}
    for writer in writers.values():
        writer.ends = frozenset()  # every answer has all tokens
    for batch in (1, 8):
        seconds = {name: [] for name in ("eager", *writers)}
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            rows = rng.integers(10, 800, (batch, PROMPT))
            seconds["eager"].append(eager_seconds(model, rows))
            for name, writer in writers.items():
                seconds[name].append(graph_seconds(writer, rows))
        print_speeds(batch, seconds)


def print_speeds(batch: int, seconds: dict[str, list[float]]) -> None:
    "Median and best of each, and how many times those of eager PyTorch."
    for name, values in seconds.items():
        words = [f"batch {batch}  {name:8}"]
        for title, pick in (("median", statistics.median), ("best", min)):
            speed, ratio = batch * TOKENS / pick(values), pick(seconds["eager"]) / pick(values)
            words.append(f"{title} {speed:6.0f} tokens/s ({ratio:.2f} x eager)")
        print("  ".join(words), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        print("onnx_speed: give a run that was merged, such as runs/quickstart")
