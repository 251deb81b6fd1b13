"""What preferences add to supervised tuning on the small base, beside the control that imitates.

A base is tuned on 40 steps of word problems. It then answers other problems many times; of each
problem that it answers both rightly and wrongly, one right and one wrong answer become a pair.
Every objective trains on the same pairs from the same start, as many steps; the control trains on
the chosen answers alone. All are measured on the same items.

    python benchmarks/preferences.py --out runs/preferences
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from llmtrainer.data.synthetic import problems
from llmtrainer.evals.compare import compare
from llmtrainer.evals.tasks import TASKS, Output, make_item
from llmtrainer.models.generate import Generation, generate_answers
from llmtrainer.pipeline import open_model, stored_result, train

SAMPLES = 8
# name -> (objective, learning rate): the best of 3e-5 to 5e-4 that was tried for each
METHODS = {
    "dpo": ({"dpo": {"beta": 0.1}}, 5e-5),
    "dpo + sft": ({"dpo": {"beta": 0.1, "sft_weight": 1.0}}, 1e-4),
    "ipo": ({"dpo": {"loss": "ipo", "beta": 0.5}}, 5e-5),
    "hinge": ({"dpo": {"loss": "hinge", "beta": 0.3}}, 3e-4),
    "simpo": ("simpo", 5e-5),
    "kto": ("kto", 1e-4),
    "orpo": ("orpo", 5e-4),
    "sft on the chosen": ("sft", 5e-4),
}


def write_rows(path: Path, rows: list[dict]) -> str:
    "The path of a file with these rows."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own_pairs(run: Path, count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    "(question, a right answer, a wrong one) of problems that the run answers both ways."
    model, tokenizer = open_model(str(run))
    asked = list(problems(4000, "train"))[-count:]  # not those of the supervised tuning
    sampling = Generation(temperature=0.6, max_new_tokens=96, n=SAMPLES, seed=seed)
    conversations = [[dict(role="user", content=problem.question)] for problem in asked]
    answers = generate_answers(
        model, tokenizer, conversations=conversations, section=sampling, batch_size=64
    )
    task = TASKS["word_problems"]
    for problem, written in zip(asked, answers):
        item = make_item(problem.question, problem.gsm8k()["answer"])
        graded = {True: [], False: []}
        for answer in written:
            score = task.grade(item, Output(text=answer.text))[task.primary]
            if answer.finish_reason == "stop":
                graded[score == 1].append(answer.text)
        if graded[True] and graded[False]:
            yield problem.question, graded[True][0], graded[False][0]


def job(data: str, objective, steps: int, lr: float, seed: int, **adapt) -> dict:
    "A recipe on the small base."
    return {
        "model": {"base": "tiny:base", "quantize": "none"},
        "data": {"train": data, "val": None, "max_length": 256, "packing": False},
        "adapt": {"r": 16, "alpha": 32} | adapt,
        "train": {
            "objective": objective,
            "max_steps": steps,
            "epochs": 99,
            "batch_size": 8,
            "lr": lr,
            "seed": seed,
        },
        "eval": {"tasks": ["word_problems"]},
    }


def main() -> None:
    "Tune, make pairs, train with every objective, and print the table."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=400, help="that the tuned model answers")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [
        dict(prompt=p.question, completion=p.gsm8k()["answer"]) for p in problems(1000, "train")
    ]
    tuning = job(write_rows(args.out / "sft.jsonl", rows), "sft", 40, lr=3e-3, seed=args.seed)
    start = train(tuning, args.out / "start", quiet=True)
    pairs = list(own_pairs(start.path, args.problems, args.seed))
    names = ("prompt", "chosen", "rejected")
    files = {
        "dpo": [dict(zip(names, pair)) for pair in pairs],
        "sft": [dict(prompt=question, completion=right) for question, right, _ in pairs],
        "kto": [
            dict(prompt=question, completion=text, label=label)
            for question, right, wrong in pairs
            for text, label in ((right, True), (wrong, False))
        ],
    }
    files = {name: write_rows(args.out / f"{name}_rows.jsonl", of) for name, of in files.items()}
    before = stored_result(start, "word_problems")
    print(
        f"{len(pairs)} pairs of {args.problems} problems; start {before.score.value:.3f}",
        flush=True,
    )
    for name in args.methods.split(","):
        objective, lr = METHODS[name]
        word = objective if isinstance(objective, str) else next(iter(objective))
        recipe = job(
            files.get(word, files["dpo"]),
            objective,
            args.steps,
            lr=lr,
            seed=args.seed,
            continue_from=str(start.path),
        )
        run = train(recipe, args.out / name.replace(" ", "_"), quiet=True)
        found = compare(before, stored_result(run, "word_problems"))
        low, high = found.interval
        print(
            f"{name:20} {found.b:.3f}  {found.difference:+.3f} ({low:+.3f} to {high:+.3f})"
            f"  p {found.p_value:.2g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
