"""What online RL adds to a short supervised tuning of the small base, seed by seed.

A base is tuned on 26 steps of word problems. GRPO then goes on from there: it writes answers to
other problems, the task's own grader rewards them, and no right answer is shown. Both are measured
on the same 256 items.

    python benchmarks/online.py --out runs/online
"""

import argparse
import json
import time
from pathlib import Path

from llmtrainer.data.synthetic import problems
from llmtrainer.evals.compare import compare
from llmtrainer.pipeline import stored_result, train


def write_rows(path: Path, rows: list[dict]) -> str:
    "The path of a file with these rows."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def job(base: str, data: str, steps: int, seed: int, **changes) -> dict:
    "A recipe that tunes all weights of a small model."
    return {
        "model": {"base": base, "quantize": "none"},
        "data": {"train": data, "val": None, "max_length": 256, "packing": False},
        "adapt": {"method": "full"},
        "train": {"max_steps": steps, "epochs": 99, "batch_size": 8, "seed": seed} | changes,
        "eval": {"tasks": ["word_problems"]},
    }


def main() -> None:
    "Tune, learn online from there, and print both scores of every seed."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objective", default="grpo")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the objective, as JSON")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tuning", type=int, default=26, help="steps of the supervised tuning")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seeds", default="0,1")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [dict(question=p.question, answer=p.gsm8k()["answer"]) for p in problems(3000, "train")]
    tuning, online = (
        write_rows(args.out / f"{name}.jsonl", part)
        for name, part in (("tuning", rows[:1000]), ("online", rows[1000:]))
    )
    settings = dict(
        rewards=[dict(grader="word_problems")],
        prompts=12,
        group=8,
        temperature=0.7,
        max_new_tokens=80,
        preflight=16,
        held_out=None,
    )
    for seed in map(int, args.seeds.split(",")):
        start = train(
            job("tiny:base", tuning, args.tuning, seed, lr=1e-3),
            args.out / f"start-{seed}",
            quiet=True,
        )
        began = time.monotonic()
        run = train(
            job(
                str(start.model),
                online,
                args.steps,
                seed,
                objective={args.objective: settings | args.settings},
                lr=args.lr,
                min_lr_ratio=0.1,
                max_grad_norm=0.3,
                batch_size=48,
                log_steps=1,
            ),
            args.out / f"{args.objective}-{seed}",
            quiet=True,
        )
        seconds = time.monotonic() - began
        found = compare(stored_result(start, "word_problems"), stored_result(run, "word_problems"))
        low, high = found.interval
        print(
            f"seed {seed}: {found.a:.3f} -> {found.b:.3f}, {found.difference:+.3f}"
            f" ({low:+.3f} to {high:+.3f}), p {found.p_value:.2g}, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
