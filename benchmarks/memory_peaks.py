"""Predicted and measured peaks of training steps on one NVIDIA GPU, the cheapest first.

    python benchmarks/memory_peaks.py [--cases 1B-qlora,8B-lora] [--steps 2] [--list] [--tiny]

Weights are random, made on the GPU and quantised there, before the peak is counted. The steps go
through the project's own trainer with packed rows, so what is measured is what `llmtrainer train`
would take. Neither memory nor speed depends on the values of weights, so nothing is downloaded.
Each case is a JSON line, so a run that is cut off has printed everything up to there. `--tiny`
tries the script on a CPU, where there is no peak to measure.
"""

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from qlora_gpu import SHAPES, blank, engine_by_name, pack
from transformers import LlamaConfig, PrinterCallback

from llmtrainer.data.loss_mask import Encoded
from llmtrainer.data.packing import collator, make_sequences
from llmtrainer.device import DevicePlan
from llmtrainer.models.activations import apply_activation_checkpointing, decoder_layers
from llmtrainer.models.lora import Adapt
from llmtrainer.models.memory import StepShape, predict_memory
from llmtrainer.models.variants import adapt_model
from llmtrainer.run import Run
from llmtrainer.training.durable import CheckpointConfig
from llmtrainer.training.objective import Sft
from llmtrainer.training.trainer import (
    DurableTrainer,
    Train,
    custom_optimizer,
    training_arguments,
)

QLORA, LORA, FULL = ("lora", "nf4"), ("lora", "none"), ("full", "none")
CASES = {  # name -> (shape, blocks, (method, storage), rows, length, recompute, engine)
    "1B-qlora-recompute": ("1B", 16, QLORA, 8, 2048, True, "reference"),
    "1B-qlora": ("1B", 16, QLORA, 4, 2048, False, "reference"),
    "1B-full": ("1B", 16, FULL, 4, 1024, True, "reference"),
    "8B/8-qlora-512": ("8B", 8, QLORA, 16, 512, True, "reference"),
    "8B/8-qlora-2048": ("8B", 8, QLORA, 4, 2048, True, "reference"),
    "8B/8-qlora-8192": ("8B", 8, QLORA, 1, 8192, True, "reference"),
    "8B/8-qlora-2048-kept": ("8B", 8, QLORA, 4, 2048, False, "reference"),
    "8B/8-lora-2048": ("8B", 8, LORA, 4, 2048, True, "reference"),
    "3B-lora-1024": ("3B", 28, LORA, 8, 1024, True, "reference"),
    "8B-qlora-512": ("8B", 32, QLORA, 8, 512, True, "reference"),
    "8B-qlora-2048": ("8B", 32, QLORA, 8, 2048, True, "reference"),
    "8B-qlora-8192": ("8B", 32, QLORA, 2, 8192, True, "reference"),
    "8B-lora-2048": ("8B", 32, LORA, 4, 2048, True, "reference"),
    "1B-qlora-fused": ("1B", 16, QLORA, 8, 2048, True, "fused"),
    "8B/8-qlora-fused": ("8B", 8, QLORA, 4, 2048, True, "fused"),
    "8B/8-qlora-fused-kept": ("8B", 8, QLORA, 4, 2048, False, "fused"),
}
TINY = {
    f"tiny-{name}-{engine}": ("tiny", 4, method, 2, 64, recompute, engine)
    for name, method in {"qlora": QLORA, "lora": LORA, "full": FULL}.items()
    for recompute, engine in ((False, "reference"), (True, "fused"))
}


def shape(name: str, blocks: int) -> LlamaConfig:
    return LlamaConfig(**SHAPES[name] | dict(num_hidden_layers=blocks))


def make(config: LlamaConfig, quantize: str, device: str):
    "A model with random weights, in NF4 where asked for, of which nothing is trained yet."
    model = blank(config, device)
    return (pack(model) if quantize == "nf4" else model).requires_grad_(False)


def packed_rows(rows: int, length: int, vocabulary: int, steps: int):
    "Random tokens in rows that hold four texts each."
    generator, piece = np.random.default_rng(0), length // 4
    texts = [
        Encoded(generator.integers(3, vocabulary, piece).tolist(), [(1, piece)])
        for _ in range(4 * rows * steps)
    ]
    return make_sequences(texts, [piece] * len(texts), length)


def measure(name: str, case: tuple, device: str, steps: int) -> dict:
    "Peak memory of the trainer's steps beside the prediction."
    size, blocks, (method, quantize), rows, length, recompute, engine = case
    config, section, began = shape(size, blocks), Adapt(method=method), time.perf_counter()
    work = StepShape(
        rows,
        length,
        recompute,
        quantize,
        mixed=device == "cuda",
        sliced=engine != "reference",
        fp8=engine in ("fp8:most", "fp8:all"),
    )
    said = predict_memory(config, section, work)
    dtype = "bfloat16" if device == "cuda" else "float32"
    plan = DevicePlan(
        device,
        dtype,
        compute_dtype=dtype,
        attn="sdpa",
        engine=engine,
        quantize=quantize,
        reasons={},
    )
    model = adapt_model(make(config, quantize, device), section)
    engine_by_name(model, engine)
    if recompute:
        apply_activation_checkpointing(decoder_layers(model), "recompute")
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    recipe, adapt = (
        Train(
            batch_size=rows,
            max_steps=steps,
            activations="recompute" if recompute else "keep",
            lr=1e-5,
            log_steps=1,
        ),
        section,
    )
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(recipe, plan, Path(folder), adapt)
        args.save_strategy = "no"
        never = CheckpointConfig(
            Run(Path(folder)), save_every="1000000 steps", notify=lambda text: None
        )
        trainer = DurableTrainer(
            model,
            args,
            train_dataset=packed_rows(rows, length, config.vocab_size, steps),
            objective=Sft(),
            checkpoint_config=never,
            data_collator=collator("sdpa", 0),
            **custom_optimizer(model, recipe, adapt, args),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.checkpoints.save_if_due = lambda *_: None  # what is measured is the steps
        made = time.perf_counter()
        trainer.train()
    peak, reserved = (
        (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        if device == "cuda"
        else (None, None)
    )
    gib = lambda n: n and round(n / 2**30, 3)
    return dict(
        case=name,
        engine=engine,
        method=method,
        quantize=quantize,
        blocks=blocks,
        rows=rows,
        length=length,
        recompute=recompute,
        predicted_gib=gib(said["allocated"]),
        measured_gib=gib(peak),
        ratio=peak and round(said["allocated"] / peak, 3),
        reserved_gib=gib(reserved),
        parts={k: gib(v) for k, v in said.items() if k not in ("flops",)},
        tflop=round(said["flops"] / 1e12, 3),
        seconds_made=round(made - began, 1),
        seconds_steps=round(time.perf_counter() - made, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", help="names with commas; all without")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="the names of the cases")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes on a CPU, to try the script"
    )
    given = parser.parse_args()
    cases = TINY if given.tiny else CASES
    if given.list:
        return print("\n".join(cases))
    if not given.tiny and not torch.cuda.is_available():
        return print("no NVIDIA GPU here; --tiny tries the script on a CPU")
    if not given.tiny:
        print(
            json.dumps(dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__)), flush=True
        )
    for name in given.cases.split(",") if given.cases else cases:
        try:
            found = measure(name, cases[name], "cpu" if given.tiny else "cuda", given.steps)
        except torch.OutOfMemoryError:
            found = dict(case=name, out_of_memory=True)
        print(json.dumps(found), flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
