"""Rows a second from a JSON-lines file of messages to packed sequences with a trained mask.

    python benchmarks/data_pipeline.py FOLDER [--trl PYTHON] [--llamafactory PYTHON]
        [--rows N] [--repeats N] [--memory]

Measures this package, trl, LLaMA-Factory and the bare tokenizer. FOLDER holds the data sets and
tokenizers named below. The peers run from environments of their own, whose Pythons are given;
without one, a peer is left out. Same rows, ChatML with its tokens special, 2,048 tokens a sequence,
packed, one process; each repeat in a new process with empty caches; the median counts. --memory
prepares 1, 10 and 100 copies of the rows and prints the peak of resident memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = (
    "instruction/t0_train_mix.jsonl.gz",
    "instruction/sgd_train_sharegpt.jsonl.gz",
    "reasoning/gsm8k_train.jsonl",
)
TOKENIZERS = ("gpt2-hf", "llama2-hf")
LENGTH = 2048
CHATML = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "<|im_start|>assistant\n{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(folder: Path, out: Path, rows: int) -> int:
    """Write the rows as messages, a toy model with each tokenizer, and LLaMA-Factory's description.

    Returns the number of rows."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from llmtrainer.data.rows import load_rows

    kept = [row for name in FILES for row in load_rows(str(folder / name))[0][:rows]]
    clean = lambda m: {
        "role": m["role"],
        "content": m["content"].replace("<|endoftext|>", ""),
    }  # t0's completions end in GPT-2's stop token as text, which this package refuses
    (out / "mix.jsonl").write_text(
        "".join(
            json.dumps({"messages": [clean(m) for m in row["messages"]]}) + "\n" for row in kept
        )
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
            {
                "mix": dict(
                    file_name="mix.jsonl",
                    formatting="sharegpt",
                    columns={"messages": "messages"},
                    tags=tags,
                )
            }
        )
    )
    for name in TOKENIZERS:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizers" / name)
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "pad_token": "<|pad|>"}
        )
        tokenizer.chat_template = CHATML
        LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=len(tokenizer) + 64,
            )
        ).save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    return len(kept)


def ours(out: Path, name: str) -> int:
    "This package: from the file to packed sequences."
    from transformers import AutoTokenizer

    from llmtrainer.data.prepare import Data, prepare

    tokenizer = AutoTokenizer.from_pretrained(out / name)
    section = Data(
        train=str(out / "mix.jsonl"),
        val=None,
        max_length=LENGTH,
        too_long="cut_end",
        duplicates="keep",
    )
    begun = time.perf_counter()
    made = len(prepare(section, tokenizer).train)
    return time.perf_counter() - begun, made


def tokenizer_alone(out: Path, name: str):
    "The limit: the texts of the messages through the compiled tokenizer in batches, no more."
    from transformers import AutoTokenizer

    backend = AutoTokenizer.from_pretrained(out / name).backend_tokenizer
    lines = (out / "mix.jsonl").read_text().splitlines()
    texts = [m["content"] for line in lines for m in json.loads(line)["messages"]]
    begun = time.perf_counter()
    made = sum(
        len(one.ids)
        for i in range(0, len(texts), 2000)
        for one in backend.encode_batch_fast(texts[i : i + 2000], add_special_tokens=False)
    )
    return time.perf_counter() - begun, made


def trl(out: Path, name: str):
    "trl's SFTTrainer, whose constructor prepares the data; reading the file counts, as everywhere."
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(out / name),
        AutoModelForCausalLM.from_pretrained(out / name),
    )
    args = SFTConfig(
        output_dir=str(out / "trl"),
        max_length=LENGTH,
        packing=True,
        assistant_only_loss=True,
        report_to=[],
        use_cpu=True,
    )
    begun = time.perf_counter()
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=load_dataset("json", data_files=str(out / "mix.jsonl"), split="train"),
        processing_class=tokenizer,
    )
    return time.perf_counter() - begun, len(trainer.train_dataset)


def llamafactory(out: Path, name: str):
    "LLaMA-Factory's get_dataset."
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model, data, train, _, _ = get_train_args(
        dict(
            model_name_or_path=str(out / name),
            stage="sft",
            do_train=True,
            finetuning_type="lora",
            dataset="mix",
            dataset_dir=str(out),
            template="chatml",
            cutoff_len=LENGTH,
            packing=True,
            neat_packing=True,
            output_dir=str(out / "lf"),
            overwrite_cache=True,
            preprocessing_num_workers=1,
            report_to="none",
            use_cpu=True,
        )
    )
    tokenizer = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data)
    begun = time.perf_counter()
    made = get_dataset(template, model, data, train, stage="sft", **tokenizer)
    return time.perf_counter() - begun, len(made["train_dataset"])


WORK = dict(ours=ours, tokenizer=tokenizer_alone, trl=trl, llamafactory=llamafactory)


def once(python: str, what: str, out: Path, name: str) -> dict:
    "One repeat in a process of its own, with empty caches."
    with tempfile.TemporaryDirectory() as empty:
        env = os.environ | dict(
            LLMTRAINER_CACHE=empty,
            HF_HOME=empty,
            HF_DATASETS_CACHE=empty,
            HF_HUB_OFFLINE="1",
            TOKENIZERS_PARALLELISM="true",
        )
        done = subprocess.run(
            [python, __file__, "--once", what, str(out), name],
            env=env,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def speed(out: Path, pythons: dict[str, str], rows: int, repeats: int) -> None:
    "Time all of them in turn, and print a table of medians."
    for name in TOKENIZERS:
        found = {what: [] for what in pythons}
        for _ in range(repeats):
            for what, python in pythons.items():
                found[what].append(once(python, what, out, name)["seconds"])
        medians = {what: statistics.median(seconds) for what, seconds in found.items()}
        best = min(
            [medians[p] for p in ("trl", "llamafactory") if p in medians], default=float("nan")
        )
        print(
            f"\n{name}, {rows:,} rows, median of {repeats}\n"
            "| | seconds | rows/s | times the faster peer | of the tokenizer's speed |\n"
            "|---|---|---|---|---|"
        )
        for what, seconds in medians.items():
            print(
                f"| {what} | {seconds:.1f} ({min(found[what]):.1f}-{max(found[what]):.1f}) "
                f"| {rows / seconds:,.0f} | {best / seconds:.1f} "
                f"| {medians['tokenizer'] / seconds:.2f} |",
                flush=True,
            )


def memory(out: Path, rows: int) -> None:
    "The peak of resident memory for 1, 10 and 100 copies of the rows."
    text = (out / "mix.jsonl").read_bytes()
    for copies in (1, 10, 100):
        big = out / f"copies-{copies}"
        big.mkdir()
        with open(big / "mix.jsonl", "wb") as file:
            for _ in range(copies):
                file.write(text)
        os.symlink(out / TOKENIZERS[0], big / TOKENIZERS[0])
        found = once(sys.executable, "ours", big, TOKENIZERS[0])
        print(
            f"{copies:3} copies, {copies * rows:,} rows, {copies * len(text) / 2**20:,.0f} MiB: "
            f"{found['seconds']:.0f} s, peak {found['peak_mib']:,.0f} MiB "
            f"({found['before_mib']:,.0f} MiB before)",
            flush=True,
        )
        (big / "mix.jsonl").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(os.environ.get("LLMTRAINER_REALDATA", "../shared")) / "data",
    )
    parser.add_argument("--trl")
    parser.add_argument("--llamafactory")
    parser.add_argument("--once", nargs=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rows", type=int, default=6500, help="rows of each file")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.once:
        what, out, name = given.once

        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before = peak()
        seconds, made = WORK[what](Path(out), name)
        return print(
            json.dumps(dict(seconds=seconds, made=made, peak_mib=peak(), before_mib=before))
        )
    if not given.folder.is_dir():
        return print(f"no data at {given.folder}: name the folder with {', '.join(FILES)}")
    with tempfile.TemporaryDirectory() as out:
        rows = make(given.folder, Path(out), given.rows)
        pythons = dict(ours=sys.executable, tokenizer=sys.executable) | {
            p: getattr(given, p) for p in ("trl", "llamafactory") if getattr(given, p)
        }
        memory(Path(out), rows) if given.memory else speed(Path(out), pythons, rows, given.repeats)


if __name__ == "__main__":
    main()
