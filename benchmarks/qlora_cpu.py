"""Wall time of a small QLoRA or LoRA run on a CPU, from command to finished adapter.

    python benchmarks/qlora_cpu.py [--base FOLDER] [--trl PYTHON] [--llamafactory PYTHON]
        [--quantize nf4|none] [--packed] [--steps N] [--rows N] [--repeats N] [--json]

Measures llmtrainer, trl's command line and LLaMA-Factory's. All three train on the same rows (this
package's word problems, in the form that each reads) with the same model, rank, steps, rows in a
step, length and learning rate, on answers only, in float32, and save nothing but the adapter. A run
is a whole process; they take turns, and the medians count. Each adapter is opened and its numbers
are counted, so that none trains less than another, and the mean training loss is shown.
OMP_NUM_THREADS is 1 unless it is set: two thread pools on few cores are far slower.

The peers run from environments of their own, whose Pythons are given; without one, a peer is left
out:

    python -m venv trl
    trl/bin/pip install torch==2.13.0 trl==1.16.0 peft==0.21.2 transformers==5.24.0 \\
        bitsandbytes==0.50.2 datasets==5.2.0 accelerate==1.15.0
    python -m venv lf
    lf/bin/pip install torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0 \\
        llamafactory==0.9.5 bitsandbytes==0.50.2
"""

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

R, ALPHA, LENGTH, BATCH, RATE = 16, 32, 256, 8, 3e-3  # as in the quickstart
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def prepare(base: str, rows: int, out: Path) -> None:
    "The model as a folder, and the rows in each tool's form."
    from llmtrainer.data.synthetic import problems
    from llmtrainer.models.load import load_tokenizer, resolve_base

    shutil.copytree(resolve_base(base), out / "base", ignore=shutil.ignore_patterns(".*"))
    tokenizer = load_tokenizer(str(out / "base"))
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(out / "base")
    said = lambda role, text: [dict(role=role, content=text)]
    pairs = [
        (said("user", p.gsm8k()["question"]), said("assistant", p.gsm8k()["answer"]))
        for p in problems(rows, "train")
    ]
    (out / "trl").mkdir()
    (out / "rows.jsonl").write_text(
        "".join(json.dumps(dict(messages=a + b)) + "\n" for a, b in pairs)
    )
    (out / "trl" / "train.jsonl").write_text(
        "".join(json.dumps(dict(prompt=a, completion=b)) + "\n" for a, b in pairs)
    )
    tags = dict(
        role_tag="role",
        content_tag="content",
        user_tag="user",
        assistant_tag="assistant",
        system_tag="system",
    )
    (out / "dataset_info.json").write_text(
        json.dumps(
            dict(
                rows=dict(
                    file_name="rows.jsonl",
                    formatting="sharegpt",
                    columns=dict(messages="messages"),
                    tags=tags,
                )
            )
        )
    )


def ours(python: str, out: Path, to: Path, given) -> list[str]:
    "llmtrainer train."
    recipe = dict(
        model=dict(base=str(out / "base"), quantize=given.quantize),
        data=dict(train=str(out / "rows.jsonl"), val=None, max_length=LENGTH, packing=given.packed),
        adapt=dict(r=R, alpha=ALPHA),
        train=dict(
            batch_size=BATCH, lr=RATE, max_steps=given.steps, epochs=99, save_steps=10**6, track=[]
        ),
    )
    (out / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return [
        python,
        "-c",
        "from llmtrainer.cli import main; main()",
        "train",
        str(out / "recipe.yaml"),
        "--run",
        str(to),
    ]


def trl(python: str, out: Path, to: Path, given) -> list[str]:
    "trl sft."
    words = dict(
        model_name_or_path=out / "base",
        dataset_name=out / "trl",
        output_dir=to,
        lora_r=R,
        lora_alpha=ALPHA,
        lora_target_modules="all-linear",
        max_length=LENGTH,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        max_steps=given.steps,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        bf16=False,
        dtype="float32",
        gradient_checkpointing=False,
    )
    flags = (
        ["--use_peft", "--use_cpu"]
        + ["--packing"] * given.packed
        + ["--load_in_4bit", "--use_bnb_nested_quant"] * (given.quantize == "nf4")
    )
    return [
        str(Path(python).with_name("trl")),
        "sft",
        *(str(part) for key, value in words.items() for part in (f"--{key}", value)),
        *flags,
    ]


def llamafactory(python: str, out: Path, to: Path, given) -> list[str]:
    "llamafactory-cli train."
    words = dict(
        model_name_or_path=str(out / "base"),
        stage="sft",
        do_train=True,
        finetuning_type="lora",
        lora_rank=R,
        lora_alpha=ALPHA,
        lora_target="all",
        dataset="rows",
        dataset_dir=str(out),
        cutoff_len=LENGTH,
        packing=given.packed,
        neat_packing=given.packed,
        output_dir=str(to),
        overwrite_cache=True,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        max_steps=given.steps,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.03 * given.steps),
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_gradient_checkpointing=True,
    ) | (
        dict(quantization_bit=4, quantization_method="bnb", double_quantization=True)
        if given.quantize == "nf4"
        else {}
    )
    (out / "lf.yaml").write_text(json.dumps(words))
    return [str(Path(python).with_name("llamafactory-cli")), "train", str(out / "lf.yaml")]


TOOLS = dict(ours=ours, trl=trl, llamafactory=llamafactory)


def numbers(folder: Path) -> int:
    "How many numbers an adapter has."
    from safetensors import safe_open

    with safe_open(next(folder.rglob("adapter_model.safetensors")), "pt") as file:
        names = file.keys()
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def once(tool: str, python: str, out: Path, given) -> dict:
    "One whole process: its seconds, the mean training loss, and the size of its adapter."
    to = out / f"{tool}-out"
    shutil.rmtree(to, ignore_errors=True)
    command = TOOLS[tool](python, out, to, given)
    with tempfile.TemporaryDirectory() as empty:  # no cache of an earlier run helps anybody
        env = (
            dict(OMP_NUM_THREADS="1")
            | os.environ
            | dict(
                HF_HUB_OFFLINE="1",
                LLMTRAINER_CACHE=empty,
                HF_DATASETS_CACHE=empty,
                DISABLE_VERSION_CHECK="1",
                CUDA_VISIBLE_DEVICES="",
            )
        )
        begun = time.perf_counter()
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=out)
        seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{tool} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    said = (to / "metrics.jsonl").read_text() if tool == "ours" else done.stdout + done.stderr
    loop = re.findall(
        r"""train_runtime["']?\s*:\s*["']?([\d.]+)""", said
    )  # as transformers' Trainer, which all three build on, prints or notes it
    return dict(
        seconds=seconds,
        loop=float(loop[-1]),
        loss=float(re.findall(r"""train_loss["']?\s*[:=]\s*["']?([\d.]+)""", said)[-1]),
        numbers=numbers(to),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", default="tiny:base", help="a folder, or a model that comes with the package"
    )
    parser.add_argument("--trl")
    parser.add_argument("--llamafactory")
    parser.add_argument(
        "--packed",
        action="store_true",
        help="rows packed to 256 tokens; else padded to the longest of a batch",
    )
    parser.add_argument(
        "--quantize", choices=("nf4", "none"), default="nf4", help="none is plain LoRA"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    pythons = dict(ours=sys.executable) | {
        name: getattr(given, name) for name in ("trl", "llamafactory") if getattr(given, name)
    }
    with tempfile.TemporaryDirectory() as folder:
        out, found = Path(folder).resolve(), {name: [] for name in pythons}
        prepare(given.base, given.rows, out)
        for _ in range(given.repeats):
            for name, python in pythons.items():
                found[name].append(once(name, str(Path(python).absolute()), out, given))
    middle = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    if given.json:
        return print(json.dumps(found))
    best = min((middle[n]["seconds"] for n in middle if n != "ours"), default=float("nan"))
    print(
        f"{given.base}, {given.quantize}, {given.steps} steps of {BATCH} rows, "
        f"{'packed to' if given.packed else 'at most'} {LENGTH} tokens, "
        f"median of {given.repeats}\n\n"
        "| | seconds | of them in the loop | of the faster peer's | trained numbers | mean loss |\n"
        "|---|---|---|---|---|---|"
    )
    for name, m in middle.items():
        all_seconds = [one["seconds"] for one in found[name]]
        print(
            f"| {name} | {m['seconds']:.1f} ({min(all_seconds):.1f}-{max(all_seconds):.1f}) "
            f"| {m['loop']:.1f} | {m['seconds'] / best:.2f} | {m['numbers']:,.0f} "
            f"| {m['loss']:.3f} |"
        )


if __name__ == "__main__":
    main()
