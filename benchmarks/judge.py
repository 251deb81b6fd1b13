"""How often a model that judges by principles agrees with people, with and without examples.

python benchmarks/judge.py MODEL hh_rlhf_harmless_test.jsonl.gz --pairs 600
"""

import argparse

from llmtrainer.align.constitution import (
    Constitution,
    judge_agreement,
    load_principles,
    model_judge,
)
from llmtrainer.data.rows import load_rows
from llmtrainer.pipeline import open_model


def size(row: dict) -> int:
    "Characters of a pair with its conversation."
    turns = [*row["prompt"], *row["chosen"], *row["rejected"]]
    return sum(len(turn["content"]) for turn in turns)


def main() -> None:
    "Print the agreement for no and for two examples."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a run, a folder or a hub name")
    parser.add_argument("data", help="rows with prompt, chosen and rejected")
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--longest", type=int, default=3000, help="characters of a pair")
    parser.add_argument("--comparisons", help="a file of comparison principles")
    parser.add_argument("--few-shot-comparisons", help="a file of judged pairs")
    parser.add_argument("--shots", default="0,2")
    args = parser.parse_args()
    rows = [row for row in load_rows(args.data)[0] if "chosen" in row]
    rows = [row for row in rows if size(row) < args.longest][: args.pairs]
    model, tokenizer = open_model(args.model)
    for shots in map(int, args.shots.split(",")):
        section = Constitution(
            prompts="none",
            shots=shots,
            comparisons=args.comparisons,
            few_shot_comparisons=args.few_shot_comparisons,
        )
        principles = load_principles(section)
        judge = model_judge(model, tokenizer, principles, batch_size=32)
        agreement = judge_agreement(judge, rows, section, principles.comparisons)
        print(f"{shots} examples: {agreement.describe()}", flush=True)


if __name__ == "__main__":
    main()
