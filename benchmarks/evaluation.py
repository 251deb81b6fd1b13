"""Items a second of our evaluation and of lm-evaluation-harness, on the same prompts.

    python benchmarks/evaluation.py MODEL FOLDER [choices|programs]

MODEL is a run, a folder or tiny:base. FOLDER holds openbookqa_mc.jsonl and gsm8k_test.jsonl, or
folders that do. Both sides take turns; the medians of the rounds are printed, in seconds on the
clock and of processor time, and whether the prompts and the texts are the same. `choices` leaves
out what is written. `programs` is something else: seconds of HumanEval (humaneval.jsonl) with its
programs run at the end, beside the writing, and several at a time. The model writes, and in place
of its programs, which a small model gets wrong at once, the data set's solutions are run.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from llmtrainer.evals.benchmarks import BENCHMARKS  # noqa: F401  it enters its tasks
from llmtrainer.evals.harness import harness_task
from llmtrainer.evals.tasks import Output, evaluate, find_task
from llmtrainer.pipeline import open_model

ROUNDS = 3
HEAD = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
"""
CHOOSE = """doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<|end|>"], max_gen_toks: 128, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def describe(folder, name, items):
    "A task of the harness for the same items."
    rows, choose = folder / f"{name}.jsonl", bool(items[0].choices)
    with open(rows, "w") as file:
        for item in items:
            label = item.choices.index(item.answer) if choose else 0
            row = dict(question=item.question, answer=item.answer, label=label)
            file.write(json.dumps(row | dict(choices=list(item.choices))) + "\n")
    kind = "multiple_choice" if choose else "generate_until"
    text = HEAD.format(name=name, rows=rows, kind=kind) + (CHOOSE if choose else WRITE)
    (folder / f"{name}.yaml").write_text(text)
    return harness_task(f"lm_eval.{name}", str(folder))


def compare(model, tokenizer, task, items, folder):
    "A line of the table: items a second of each way to ask."
    theirs = describe(folder, f"bench_{task.name}", items)
    ids = {item.id for item in items}
    ours = replace(task, load=lambda _: [item for item in items if item.id in ids])
    ways = {f"lm-eval, batch {size}": (theirs, size) for size in (1, 8, 16, 64)}
    ways |= {f"ours, batch {size}": (ours, size) for size in (1, 8, 16, 64)}
    seconds, results = {name: [] for name in ways}, {}
    for _ in range(ROUNDS):
        for name, (asked, size) in ways.items():
            began = time.perf_counter(), time.process_time()
            results[name] = evaluate(model, tokenizer, asked, batch_size=size)
            seconds[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    for place, clock in enumerate(("clock", "processor")):
        spent = {n: statistics.median(pair[place] for pair in s) for n, s in seconds.items()}
        speeds = {name: len(items) / value for name, value in spent.items()}
        best = max(value for name, value in speeds.items() if name.startswith("lm-eval"))
        ours = max(value for name, value in speeds.items() if name.startswith("ours"))
        print(task.name, len(items), "items,", clock, {n: round(v, 1) for n, v in speeds.items()})
        print("  ours to their best:", round(ours / best, 2))
    last, first = results["ours, batch 64"], results["lm-eval, batch 64"]
    texts = {item.output.prompt_ids: item.output.text for item in first.items}
    mine = {item.output.prompt_ids: item.output.text for item in last.items}
    print("  same prompts:", texts.keys() == mine.keys(), " same texts:", texts == mine)
    same = all(results[f"ours, batch {size}"].scores == last.scores for size in (1, 8, 16))
    print("  scores at batch 1, 8, 16 and 64 are the same:", same)


def programs(model, tokenizer, data_dir):
    "Seconds of HumanEval by where and how many programs are run, and how they end."
    task = find_task("humaneval")
    solve = lambda item, _: task.grade(item, Output(text=item.answer))
    ways = {"at the end": 0, "beside, one": 1, f"beside, {task.graders} at a time": task.graders}
    seconds, results = {name: [] for name in ways}, {}
    for _ in range(ROUNDS):
        for name, graders in ways.items():
            asked = replace(task, grade=solve, graders=graders)
            results[name] = evaluate(model, tokenizer, asked, data_dir)
            seconds[name].append(results[name].seconds)
    for name, result in results.items():
        ends = {score: result.scores[score].value for score in ("accuracy", "too_slow")}
        print(name, round(statistics.median(seconds[name]), 1), "s", ends)
    each = [result.model_copy(update=dict(seconds=0.0)) for result in results.values()]
    print("  the same results:", all(result == each[0] for result in each))


def main(name, data_dir, part="all"):
    "Both tables, or one part."
    model, tokenizer = open_model(name)
    if part == "programs":
        return programs(model, tokenizer, data_dir)
    folder = Path(tempfile.mkdtemp())
    choose = find_task("openbookqa")
    compare(model, tokenizer, choose, choose.items(data_dir, 200), folder)
    if part == "choices":
        return
    write = replace(find_task("gsm8k"), max_new_tokens=128)
    compare(model, tokenizer, write, write.items(f"{data_dir}/reasoning", 100), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
