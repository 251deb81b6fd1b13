"""How training speeds up on several GPUs of one machine: tokens a second on 1, 2, ... devices through the loop of chapter 41, by DDP (QLoRA) and FSDP2 (LoRA in 16 bits).

    python benchmarks/scaling.py [--shapes 1B,8B] [--strategies ddp,fsdp] [--gpus 1,2] [--rows 8] [--length 2048]

Weights are random and made in place. `rows` sequences go to each device, so that perfect scaling is as many times the tokens a second as there are
devices. --tiny tries the script on a CPU with two processes, where its figures mean nothing. Each measurement is a torchrun of its own.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from qlora_gpu import SHAPES, make

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

from llmtrainer.data.pack import Order, collator
from llmtrainer.device import plan, probe
from llmtrainer.models.adapt import Adapt, adapt_model
from llmtrainer.run import Run
from llmtrainer.train.durable import Keeping, rank, world
from llmtrainer.train.launch import Launch, check_running, join, options
from llmtrainer.train.loop import DurableTrainer, Train, arguments, next_token


@dataclass
class Random:
    "Sequences of random tokens, as the loop takes them."
    count: int
    length: int
    words: int
    def __len__(self): return self.count
    def __getitem__(self, i):
        ids = np.random.default_rng(i).integers(3, self.words, self.length)
        return dict(input_ids=ids, position_ids=np.arange(self.length), labels=ids)
    def sampler(self, seed): return Order([self.count], [self.count], seed)


class Clock(TrainerCallback):
    "When each step ended."
    def __init__(self): self.ends = []
    def on_step_end(self, *_, **__):
        if torch.cuda.is_available(): torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def work(shape: str, strategy: str, gpus: int, rows: int, length: int, out: Path) -> None:
    "One process of a measurement."
    launch, here, steps = Launch(gpus=gpus, strategy=strategy if gpus > 1 else "ddp"), plan(probe()), 12
    join(launch, here.device)
    if strategy == "ddp": model = make(shape, 16, "cuda" if here.device == "cuda" else "cpu")
    else: model = adapt_model(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape]), dtype=torch.bfloat16, attn_implementation="sdpa"), Adapt(r=16))
    section, clock = Train(batch_size=rows, accumulate=gpus, max_steps=steps, epochs=99, log_steps=steps, track="none"), Clock()
    keeping = Keeping(Run(out), save="1000000 steps", say=lambda text: None, running=lambda accelerator: check_running(launch, accelerator))
    trainer = DurableTrainer(model, arguments(section, here, out / f"x{rank()}", **options(launch)), train_dataset=Random(rows * gpus * 4, length, SHAPES[shape]["vocab_size"]), objective=next_token, keeping=keeping, data_collator=collator("sdpa", 0), callbacks=[clock])
    trainer.keeper.store = lambda *_: None  # what is measured is the steps
    trainer.train()
    seconds = statistics.median(b - a for a, b in zip(clock.ends[3:], clock.ends[4:]))
    if rank() == 0: (out / "found.json").write_text(json.dumps(dict(shape=shape, strategy=strategy, gpus=world(), tokens_per_second=round(rows * length * world() / seconds), peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1) if torch.cuda.is_available() else 0)))
    if dist.is_initialized(): dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = lambda text: text.split(",")
    parser.add_argument("--shapes", type=several, default=["1B", "8B"]), parser.add_argument("--strategies", type=several, default=["ddp", "fsdp"]), parser.add_argument("--gpus", type=several, default=["1", "2"])
    parser.add_argument("--rows", type=int, default=8), parser.add_argument("--length", type=int, default=2048), parser.add_argument("--tiny", action="store_true"), parser.add_argument("--worker", nargs=4, metavar=("SHAPE", "STRATEGY", "GPUS", "OUT"))
    given = parser.parse_args()
    if given.worker: return work(given.worker[0], given.worker[1], int(given.worker[2]), given.rows, given.length, Path(given.worker[3]))
    if given.tiny: given.shapes, given.strategies, given.rows, given.length = ["tiny"], ["ddp"], 2, 32
    elif torch.cuda.device_count() < max(map(int, given.gpus)): return print(f"{torch.cuda.device_count()} GPUs here; --tiny tries the script on a CPU")
    for shape in given.shapes:
        for strategy in given.strategies:
            alone = None
            for gpus in given.gpus:
                with tempfile.TemporaryDirectory() as folder:
                    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}", __file__, "--rows", str(given.rows), "--length", str(given.length), "--worker", shape, strategy, gpus, folder]
                    done = subprocess.run(line if int(gpus) > 1 else [sys.executable, *line[line.index(__file__):]], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
                    if done.returncode:
                        print(json.dumps(dict(shape=shape, strategy=strategy, gpus=int(gpus), failed=done.stderr.strip().splitlines()[-1:])), flush=True)
                        continue
                    found = json.loads((Path(folder) / "found.json").read_text())
                alone = alone or found["tokens_per_second"] / int(gpus)
                print(json.dumps(found | dict(times=round(found["tokens_per_second"] / alone, 2))), flush=True)


if __name__ == "__main__": main()
