"""What the training loop costs over a bare PyTorch loop, and how long a save stops it, on a CPU.

    python benchmarks/training_overhead.py [--steps 60] [--json]

Both loops train the same adapters of the small base on the same sequences in the same order with
AdamW. They take turns in blocks of steps, so that a machine that slows down slows both. The bare
loop makes its batches, too. A save's pause is what the training waits for, beside copying the same
tensors in memory.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from llmtrainer.data.packing import collator, pad_batch
from llmtrainer.data.prepare import Data, prepare
from llmtrainer.data.synthetic import problems
from llmtrainer.device import plan_device, probe
from llmtrainer.models.load import Model, load_model
from llmtrainer.models.lora import Adapt
from llmtrainer.models.variants import adapt_model
from llmtrainer.run import Run
from llmtrainer.training.durable import CheckpointConfig
from llmtrainer.training.objective import Sft
from llmtrainer.training.resume import checkpoint_weights, copy_to_host
from llmtrainer.training.trainer import DurableTrainer, Train, training_arguments


def made(folder: Path):
    "(model with adapters, tokenizer, sequences)."
    rows = folder / "rows.jsonl"
    if not rows.exists():
        rows.write_text("".join(json.dumps(p.gsm8k()) + "\n" for p in problems(2000, "train")))
    model, tokenizer = load_model(Model(base="tiny:base"), plan_device(probe()))
    data = prepare(Data(train=str(rows), max_length=256), tokenizer)
    return adapt_model(model, Adapt()), tokenizer, data.train


def bare(model, tokenizer, train, section: Train) -> list[float]:
    "Seconds of each step of a plain loop."
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=section.lr,
        weight_decay=0.0,
        fused=True,
    )
    order, seconds, size = (
        list(train.sampler(section.seed)),
        [],
        section.batch_size * section.accumulate,
    )
    model.train()
    for step in range(section.max_steps):
        begun = time.perf_counter()
        rows = [train[order[i % len(order)]] for i in range(step * size, (step + 1) * size)]
        micro = [
            pad_batch(rows[lo : lo + section.batch_size], tokenizer.pad_token_id)
            for lo in range(0, size, section.batch_size)
        ]
        items = sum((b["labels"][:, 1:] != -100).sum() for b in micro)
        for batch in micro:
            (Sft().compute_loss(model, batch).total / items).backward()
        torch.nn.utils.clip_grad_norm_(
            [p for p in model.parameters() if p.requires_grad], section.max_grad_norm
        )
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    return seconds


def ours(
    model, tokenizer, train, section: Train, folder: Path, save: str = "1000000 steps"
) -> tuple[list[float], list[float], list[float]]:
    "(seconds of each step, of each save's pause, of copying the same tensors) in the Trainer."
    run, ends, pauses, copies = Run.open(folder, section), [], [], []
    trainer = DurableTrainer(
        model,
        training_arguments(section, plan_device(probe()), folder / "x"),
        train_dataset=train,
        objective=Sft(),
        checkpoint_config=CheckpointConfig(run, save_every=save, notify=lambda text: None),
        data_collator=collator("sdpa", tokenizer.pad_token_id),
    )
    end, store = trainer.checkpoints.on_step_end, trainer.checkpoints.save

    def timed_end(*args, **kw):
        end(*args, **kw)
        ends.append(time.perf_counter())

    def timed_store(state):
        # a machine this small may still be writing the last one: that is counted separately
        trainer.checkpoints.saver.wait()
        begun = time.perf_counter()
        held = copy_to_host([checkpoint_weights(trainer.model)[0], trainer.optimizer.state_dict()])
        copies.append(time.perf_counter() - begun)
        del held
        begun = time.perf_counter()
        store(state)
        pauses.append(time.perf_counter() - begun)

    trainer.checkpoints.on_step_end, trainer.checkpoints.save = timed_end, timed_store
    trainer.train()
    trainer.checkpoints.saver.wait()
    return [b - a for a, b in zip(ends, ends[1:])], pauses, copies


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="in a block")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    section = Train(
        batch_size=8,
        accumulate=1,
        lr=1e-3,
        max_steps=options.steps,
        epochs=99,
        log_steps=10,
        schedule="constant",
        warmup_ratio=0,
    )
    plain, trained, pauses, copies = [], [], [], []
    for block in range(options.blocks):
        plain += bare(*made(work), section)[2:]
        trained += ours(*made(work), section, work / f"run-{block}")[0][
            2:-1
        ]  # the last one holds the final save
    for block in range(options.blocks):
        _, p, c = ours(
            *made(work),
            section.model_copy(update=dict(max_steps=12)),
            work / f"saves-{block}",
            save="2 steps",
        )
        pauses, copies = pauses + p, copies + c
    found = dict(
        bare_ms=1e3 * statistics.median(plain),
        ours_ms=1e3 * statistics.median(trained),
        overhead=statistics.median(trained) / statistics.median(plain) - 1,
        pause_ms=1e3 * statistics.median(pauses),
        copy_ms=1e3 * statistics.median(copies),
        saves=len(pauses),
        steps=len(trained),
        threads=torch.get_num_threads(),
    )
    if options.json:
        print(json.dumps(found))
    else:
        print(
            f"step: bare {found['bare_ms']:.1f} ms, ours {found['ours_ms']:.1f} ms, "
            f"overhead {found['overhead']:+.1%} "
            f"(medians of {found['steps']} steps; at most 5 % is the aim)"
        )
        print(
            f"save: the training waits {found['pause_ms']:.1f} ms, copying the tensors alone "
            f"takes {found['copy_ms']:.1f} ms (medians of {found['saves']} saves)"
        )


if __name__ == "__main__":
    main()
