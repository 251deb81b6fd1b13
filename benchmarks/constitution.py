"""What a constitution of one rule does to the small base: is the rule kept, are answers right?

A base is tuned on word problems. Then the whole job runs: critique and revision, tuning with
replayed rows, pairs, DPO. The rule is checked on held-out prompts by its own function and not by
the judge, so that a judge that is wrong (--error 0.2) cannot make its own figure better.

    python benchmarks/constitution.py --out runs/constitution
"""

import argparse
import json
import os
from pathlib import Path

from unit_rule import keeps_rule

from llmtrainer.constitution import divide_prompts, read_constitution, run_constitution
from llmtrainer.data.synthetic import problems
from llmtrainer.evals.metrics import score
from llmtrainer.models.load import TRUST_VARIABLE
from llmtrainer.pipeline import train
from llmtrainer.run import read_lines

FULL = {"adapt": {"method": "full"}}


def write_rows(path: Path, rows: list[dict]) -> str:
    "The path of a file with these rows."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tuned_model(out: Path, seed: int) -> tuple[str, dict]:
    "(folder of a model that solves most word problems, the section data that it was tuned on)."
    rows = [problem.gsm8k() for problem in problems(3000, "train", seed)]
    data = dict(train=write_rows(out / "train.jsonl", rows), val=None, max_length=256)
    section = dict(max_steps=60, epochs=99, batch_size=8, lr=1e-3, seed=seed)
    model = dict(base="tiny:base", quantize="none")
    train(dict(model=model, data=data, train=section, **FULL), out / "start", quiet=True)
    return str(out / "start" / "model"), data


def job(out: Path, args, seed: int) -> dict:
    "The recipe of the job."
    base, data = tuned_model(out, seed)
    known = {problem.question for problem in problems(3000, "train", seed)}
    asked = [p.question for p in problems(4000, "train", seed + 7) if p.question not in known]
    prompts = write_rows(out / "prompts.jsonl", [dict(prompt=q) for q in asked[:1200]])
    roles = dict(critic="critic", reviser="reviser", judge=args.judge)
    named = {role: f"unit_rule:{name}" for role, name in roles.items()}
    os.environ[TRUST_VARIABLE] = ",".join(named.values())
    steps = dict(epochs=99, batch_size=8, seed=seed)
    return dict(
        model=dict(base=base, quantize="none"),
        data=data,
        train=dict(max_steps=args.steps, lr=5e-4, **steps),
        preferences=dict(objective="dpo", max_steps=30, lr=2e-5, **steps),
        generate=dict(max_new_tokens=96),
        eval=dict(tasks=["word_problems"], base=False),
        constitution=dict(
            prompts=prompts,
            held_out=256,
            replay=args.replay,
            seed=seed,
            **{role: dict(python=name, trust=name) for role, name in named.items()},
        ),
        **FULL,
    )


def main() -> None:
    "Run the job for each seed, and print how often the rule is kept and answers are right."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=60, help="of the tuning on revisions")
    parser.add_argument("--replay", type=float, default=0.5)
    parser.add_argument("--error", default="0", help="share of pairs that the judge gets wrong")
    parser.add_argument("--judge", default="judge", help="judge or always_first")
    args = parser.parse_args()
    os.environ["RULE_ERROR"] = args.error
    for seed in map(int, args.seeds.split(",")):
        out = args.out / f"seed-{seed}"
        out.mkdir(parents=True, exist_ok=True)
        recipe = read_constitution(job(out, args, seed))
        record = run_constitution(recipe, out / "job", quiet=True)
        print(f"seed {seed}, {record.counts}, seconds {record.seconds}")
        asked = [case.prompt for case in divide_prompts(recipe.constitution).held_out]
        for stage in record.stages:
            lines = read_lines(out / "job" / "job" / f"held-out-{stage.name}.jsonl")
            kept = [keeps_rule(p, line["text"]) for p, line in zip(asked, lines, strict=True)]
            rule, right = score(list(map(float, kept))), stage.tasks["word_problems"]
            words = [
                f"{name} {s.value:.3f} ({s.interval[0]:.3f} to {s.interval[1]:.3f})"
                for name, s in (("rule", rule), ("right", right), ("judged", stage.preferred))
            ]
            print(f"  {stage.name:12}", *words, sep="  ", flush=True)


if __name__ == "__main__":
    main()
