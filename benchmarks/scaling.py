"""How training speeds up on two GPUs of one machine, through the trainer of llmtrainer.training.

    python benchmarks/scaling.py [--shapes 1B,8B] [--strategies single,ddp,fsdp,deepspeed]
        [--weights lora,qlora] [--rows 4] [--length 2048] [--engine reference] [--seconds 230]
        [--mix FILE [--padded]] [--recompute 8B]

Measures tokens a second of one process (single) and of two by DDP, by FSDP2 and by DeepSpeed's
ZeRO-3, each with LoRA over 16 bits and with QLoRA. Prints a JSON line for each case as it ends, and
one with the efficiencies: tokens a second of two divided by twice those of one. Weights are random
and made in place. `rows` sequences go to each device, so perfect scaling doubles the tokens a
second. With --mix they are texts of real lengths, packed to `length` or, with --padded, padded; the
tokens counted are no padding. A case is one or two processes of its own with a time limit of its
own, so that one that fails takes no other with it; `single` cases run two at a time, on a GPU each.
The processes of a case import while the case before it trains. Each case checks that what was asked
for is what runs: the kind of distribution, the number of processes, and the share of the weights'
bytes on a device.
deepspeed must be installed, takes 16 bits only, and is not among the default strategies. --tiny
tries the script on a CPU over gloo, where figures mean nothing. fsdp is refused there, since the
Trainer has it on GPUs only; deepspeed runs with DS_ACCELERATOR=cpu in the environment.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LIMIT = 110  # seconds for a case, from its turn on


@dataclass(frozen=True)
class Case:
    "One measurement."

    shape: str
    strategy: str
    weights: str

    @property
    def gpus(self) -> int:
        return 1 if self.strategy == "single" else 2

    def about(self) -> dict:
        return dict(shape=self.shape, strategy=self.strategy, weights=self.weights, gpus=self.gpus)


@dataclass
class Random:
    "Sequences of random tokens, as the loop takes them."

    count: int
    length: int
    words: int
    endless = False

    def position(self, taken):
        return {}

    def seek(self, position):
        pass

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        ids = np.random.default_rng(i).integers(3, self.words, self.length)
        return dict(input_ids=ids, position_ids=np.arange(self.length), labels=ids)

    def sampler(self, seed):
        from llmtrainer.data.packing import EpochSampler

        return EpochSampler([self.count], [self.count], seed)


@dataclass
class Counted:
    "A collator that notes how many tokens of each batch are no padding."

    collate: object
    tokens: list[int]

    def __call__(self, sequences):
        self.tokens.append(sum(len(sequence["input_ids"]) for sequence in sequences))
        return self.collate(sequences)


def rows_of(given, count: int, words: int):
    "What is trained on: whole random rows, or texts of real lengths."
    if not given.mix:
        return Random(count, given.length, words)
    from qlora_gpu import texts_of

    from llmtrainer.data.packing import make_sequences

    texts = texts_of(given.mix, words)
    return make_sequences(texts, [len(t) for t in texts], given.length, packing=not given.padded)


def work(case: Case, given, folder: Path) -> None:
    "One process of a case: imports, waits for its turn, trains a few steps, leaves its figures."
    import torch
    import torch.distributed as dist
    from qlora_gpu import SHAPES, blank, pack
    from transformers import LlamaConfig, TrainerCallback

    from llmtrainer.data.packing import collator
    from llmtrainer.device import plan_device, probe
    from llmtrainer.models.activations import apply_activation_checkpointing, decoder_layers
    from llmtrainer.models.engines import fuse_model
    from llmtrainer.models.lora import Adapt
    from llmtrainer.models.variants import adapt_model
    from llmtrainer.run import Run
    from llmtrainer.training.distributed import all_gather, rank
    from llmtrainer.training.durable import CheckpointConfig
    from llmtrainer.training.launch import (
        Launch,
        check_strategy,
        init_distributed,
        sharded,
        strategy_arguments,
    )
    from llmtrainer.training.objective import Sft
    from llmtrainer.training.trainer import DurableTrainer, Train, training_arguments

    (folder / f"imported{os.environ.get('LOCAL_RANK', 0)}").touch()
    while not (folder / "turn").exists():
        time.sleep(0.05)
    began, marks = time.perf_counter(), {}
    mark = lambda name: marks.__setitem__(name, round(time.perf_counter() - began, 1))
    here = plan_device(probe(), "nf4" if case.weights == "qlora" else "none")
    cuda = here.device == "cuda"
    launch = Launch(gpus=case.gpus, strategy="ddp" if case.strategy == "single" else case.strategy)
    init_distributed(launch, here.device)
    mark("joined")
    model = blank(LlamaConfig(**SHAPES[case.shape]), here.device)
    if case.weights == "qlora":
        model = pack(model, sharded(launch))
    model = adapt_model(model, Adapt(r=16), 0).train()
    mark("made")
    backend = "auto" if given.compile else None
    fuse_model(model, given.engine, backend=backend, sharded=sharded(launch))
    if case.shape in given.recompute:
        apply_activation_checkpointing(decoder_layers(model), "recompute")
    whole, ends, found = sum(p.nbytes for p in model.parameters()), [], case.about()

    class Clock(TrainerCallback):
        "When each step ended; memory is measured over the steps that count."

        def on_step_end(self, args, state, control, **_):
            if cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            if cuda and state.global_step == 3:
                torch.cuda.reset_peak_memory_stats()

    def running(accelerator) -> None:
        "Does that run which was asked for?"
        check_strategy(launch, accelerator, model)
        held = sum(
            (p.to_local() if hasattr(p, "to_local") else getattr(p, "ds_tensor", p)).nbytes
            for p in model.parameters()
        )  # deepspeed leaves its part beside an empty weight
        found.update(
            runs=accelerator.distributed_type.value,
            processes=accelerator.num_processes,
            share=round(held / whole, 3),
            weights_gib=round(held / 2**30, 2),
        )
        assert (
            abs(found["share"] - (0.5 if case.strategy in ("fsdp", "deepspeed") else 1)) < 0.02
        ), f"{found['share']} of the weights lies on this device"

    section = Train(
        batch_size=given.rows,
        accumulate=case.gpus,
        max_steps=given.steps,
        epochs=99,
        log_steps=given.steps,
    )
    (folder / "run").mkdir(exist_ok=True)
    never = CheckpointConfig(
        Run(folder / "run"),
        save_every="1000000 steps",
        notify=lambda text: None,
        check_start=running,
    )
    collate = Counted(collator("sdpa", 0), [])
    trainer = DurableTrainer(
        model,
        training_arguments(section, here, folder / f"x{rank()}", **strategy_arguments(launch)),
        train_dataset=rows_of(given, given.rows * case.gpus * 4, SHAPES[case.shape]["vocab_size"]),
        objective=Sft(),
        checkpoint_config=never,
        data_collator=collate,
        callbacks=[Clock()],
    )
    trainer.checkpoints.save_if_due = lambda *_: None  # what is measured is the steps
    done = trainer.train()
    mark("trained")
    steps = [b - a for a, b in zip(ends[2:], ends[3:])]
    tokens = [sum(of_step) for of_step in zip(*all_gather(collate.tokens))][3 : 3 + len(steps)]
    peaks = all_gather(round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else 0.0)
    found |= dict(
        engine=given.engine,
        mix=given.mix and Path(given.mix).stem,
        padded=given.padded,
        tokens_per_second=round(statistics.median(n / s for n, s in zip(tokens, steps))),
        step_s=round(statistics.median(steps), 3),
        steps_s=[round(step, 3) for step in steps],
        peak_gib=peaks,
        loss=round(done.training_loss, 4),
        seconds=marks,
    )
    if rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


class Started:
    "The processes of a case, which wait for their turn."

    def __init__(self, case: Case, gpu: int, passed: list[str]):
        self.case, self.folder = case, tempfile.TemporaryDirectory()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        self.processes = []
        for i in range(case.gpus):
            several = (
                dict(
                    RANK=str(i),
                    LOCAL_RANK=str(i),
                    WORLD_SIZE=str(case.gpus),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port,
                    TORCHELASTIC_RUN_ID="scaling",
                )
                if case.gpus > 1
                else dict(CUDA_VISIBLE_DEVICES=str(gpu))
            )
            line = [
                sys.executable,
                __file__,
                *passed,
                "--worker",
                case.shape,
                case.strategy,
                case.weights,
                self.folder.name,
            ]
            threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            with open(Path(self.folder.name) / f"said{i}.txt", "w") as output:
                process = subprocess.Popen(
                    line,
                    env=os.environ | threads | several,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            self.processes.append(process)

    def turn(self) -> None:
        "Let it begin; its time runs from here, or from when its imports are done."
        (Path(self.folder.name) / "turn").touch()
        self.until = time.monotonic() + LIMIT

    def importing(self) -> bool:
        return len(list(Path(self.folder.name).glob("imported*"))) < self.case.gpus

    def ended(self) -> bool:
        "Are all its processes gone, one of them badly, or its time over?"
        codes = [p.poll() for p in self.processes]
        if self.importing() and None in codes:
            self.until = min(time.monotonic() + LIMIT, self.until + LIMIT)
        return None not in codes or any(codes) or time.monotonic() > self.until

    def result(self) -> dict:
        "What it found, or why not; nothing of it runs afterwards."
        late = time.monotonic() > self.until
        if any(p.poll() not in (None, 0) for p in self.processes):
            time.sleep(1)  # the other one says its part
        for p in self.processes:
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGKILL)
            p.wait()
        file = Path(self.folder.name) / "found.json"
        if file.is_file() and not late:
            return json.loads(file.read_text())
        said = [
            (Path(self.folder.name) / f"said{i}.txt").read_text(errors="replace").strip()
            for i in range(self.case.gpus)
        ]
        print("\n".join(said)[-3000:], file=sys.stderr, flush=True)
        return self.case.about() | dict(
            failed=f"over {LIMIT} s"
            if late
            else next(
                (line for text in said for line in text.splitlines()[::-1] if "Error" in line),
                (said[0].splitlines() or ["nothing was said"])[-1],
            )[:300]
        )

    def stop(self) -> None:
        "End what waits."
        for p in self.processes:
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGKILL)
            p.wait()


def turns(
    shapes: list[str], strategies: list[str], weights: list[str], gpus: int
) -> list[list[Case]]:
    "Cases that run at the same time, in order: single ones in pairs where there are two GPUs."
    single = (
        [Case(shape, "single", kind) for shape in shapes for kind in weights]
        if "single" in strategies
        else []
    )
    size = max(1, min(2, gpus))
    return [single[i : i + size] for i in range(0, len(single), size)] + [
        [Case(shape, strategy, kind)]
        for strategy in strategies
        if strategy != "single"
        for shape in shapes
        for kind in weights
        if (strategy, kind) != ("deepspeed", "qlora")
    ]


def efficiencies(found: list[dict]) -> dict[str, float]:
    "Tokens a second of two devices over twice those of one."
    speed = {
        (f["shape"], f["weights"], f["strategy"]): f["tokens_per_second"]
        for f in found
        if "tokens_per_second" in f
    }
    return {
        " ".join((shape, weights, strategy)): round(fast / 2 / speed[shape, weights, "single"], 3)
        for (shape, weights, strategy), fast in speed.items()
        if strategy != "single" and (shape, weights, "single") in speed
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = lambda text: text.split(",")
    parser.add_argument("--shapes", type=several, default=["1B", "8B"])
    parser.add_argument("--strategies", type=several, default=["single", "ddp", "fsdp"])
    parser.add_argument("--weights", type=several, default=["lora", "qlora"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--engine", default="reference", help="reference, fused or fp8")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the decoder layers too, as training with the engines fused and fp8 does; "
        "some 20 s more for a case",
    )
    parser.add_argument(
        "--recompute", type=several, default=["8B"], help="shapes whose layers are computed again"
    )
    parser.add_argument("--mix", help="lengths of real texts: a JSON list of [tokens, trained]")
    parser.add_argument("--padded", action="store_true", help="with --mix: padded, not packed")
    parser.add_argument(
        "--steps", type=int, default=8, help="of which the first three do not count"
    )
    parser.add_argument("--seconds", type=float, default=230, help="after which no case begins")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--worker", nargs=4, metavar=("SHAPE", "STRATEGY", "WEIGHTS", "FOLDER"))
    given = parser.parse_args()
    if given.worker:
        return work(Case(*given.worker[:3]), given, Path(given.worker[3]))
    began = time.monotonic()
    gpus = (
        0
        if given.tiny
        else len(
            subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.splitlines()
        )
    )
    if given.tiny:
        given.shapes, given.rows, given.length = ["tiny"], 2, 32
    elif gpus < 1 or (gpus < 2 and given.strategies != ["single"]):
        return print(f"{gpus} GPUs here; one does for --strategies single, --tiny for a CPU")
    passed = [
        "--rows",
        str(given.rows),
        "--length",
        str(given.length),
        "--engine",
        given.engine,
    ] + ["--compile"] * given.compile
    passed += ["--steps", str(given.steps)] + ["--padded"] * given.padded
    passed += ["--recompute", ",".join(given.recompute)]
    passed += ["--mix", given.mix] if given.mix else []
    waiting, found = turns(given.shapes, given.strategies, given.weights, gpus), []
    start = lambda cases: [Started(case, i, passed) for i, case in enumerate(cases)]
    ready = start(waiting[0])
    for number, cases in enumerate(waiting):
        left = given.seconds - (time.monotonic() - began)
        if left < 20:
            for case in cases:
                print(json.dumps(case.about() | dict(skipped="no time left")), flush=True)
            for one in ready:
                one.stop()
            ready = []
            continue
        now, ready = (
            ready or start(cases),
            start(waiting[number + 1]) if number + 1 < len(waiting) and not given.tiny else [],
        )
        for one in now:
            one.turn()
        while now:
            for one in [o for o in now if o.ended()]:
                now.remove(one)
                found.append(one.result() | dict(at_s=round(time.monotonic() - began)))
                print(json.dumps(found[-1]), flush=True)
            time.sleep(0.1)
    print(
        json.dumps(
            dict(
                efficiency=efficiencies(found),
                cases=len(found),
                failed=sum("failed" in f for f in found),
                seconds=round(time.monotonic() - began),
            )
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
