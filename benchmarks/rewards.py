"""How often a reward model of the small base is right on held-out pairs of its own answers.

A base is tuned on 40 steps of word problems and merged. It answers other problems eight times; of
each problem that it answers both rightly and wrongly, one right and one wrong answer become a
pair. 200 pairs are held out, and a reward model is trained on the others, from the tuned model.
With --pairs FILE, rows of pairs are used instead, and --base names the model.

    python benchmarks/rewards.py --out runs/rewards
    python benchmarks/rewards.py --out runs/hh --pairs hh_rlhf_harmless_test.jsonl.gz --base MODEL
"""

import argparse
import random
from pathlib import Path

from preferences import job, own_pairs, write_rows

from llmtrainer.align.reward import RewardRecord
from llmtrainer.data.rows import load_rows
from llmtrainer.data.synthetic import problems
from llmtrainer.pipeline import merge_run, train


def tuned_model(out: Path, seed: int) -> tuple[str, Path]:
    "(the merged folder of a tuned base, its run)."
    rows = [
        dict(prompt=p.question, completion=p.gsm8k()["answer"]) for p in problems(1000, "train")
    ]
    tuning = job(write_rows(out / "sft.jsonl", rows), "sft", steps=40, lr=3e-3, seed=seed)
    run = train(tuning, out / "start", quiet=True)
    if not (run.exports / "merged").is_dir():
        merge_run(run)
    return str(run.exports / "merged"), run.path


def main() -> None:
    "Make or read pairs, hold some out, train on the others, and print the record."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=1600, help="that the tuned model answers")
    parser.add_argument("--pairs", help="a file of pairs")
    parser.add_argument("--base", help="the model, with --pairs")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = ("prompt", "chosen", "rejected")
    if args.pairs:
        base, rows = args.base, load_rows(args.pairs)[0]
        rows = [{name: row[name] for name in names} for row in rows]
    else:
        base, run = tuned_model(args.out, args.seed)
        rows = [dict(zip(names, pair)) for pair in own_pairs(run, args.problems, args.seed)]
    random.Random(args.seed).shuffle(rows)
    held, rest = rows[: args.held_out], rows[args.held_out :]
    file = write_rows(args.out / "rows.jsonl", rest)
    recipe = job(file, "reward", steps=None, lr=args.lr, seed=args.seed)
    recipe["data"] |= dict(
        val=write_rows(args.out / "held.jsonl", held),
        max_length=args.max_length,
        too_long="drop",
        max_rejects=0.5,
        packing=True,
    )
    recipe["model"]["base"] = base
    recipe["train"] |= dict(epochs=args.epochs, max_steps=None, batch_size=4)
    recipe["eval"] = {}
    run = train(recipe, args.out / "reward", quiet=True)
    print(f"{len(rest)} pairs; {run.find_record(RewardRecord).describe()}", flush=True)


if __name__ == "__main__":
    main()
