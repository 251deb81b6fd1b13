"""The peers at the work of `qlora_gpu.py`, on one NVIDIA GPU, one peer a process.

    python benchmarks/qlora_peers.py plain|liger|unsloth [--shapes 1B,8B] [--lengths 2048]
        [--tokens 16384] [--ranks 16] [--activations keep,default] [--mix FILE]
        [--padded TEXTS] [--method lora|full]

The peers are transformers + peft + bitsandbytes, the same with Liger's kernels, and Unsloth.
Weights are random, written once as a checkpoint in NF4 (bf16 for full fine-tuning) to --folder and
loaded by the peer's own loader. `default` is what each does unasked: recomputing, or offloading for
Unsloth, which takes one of the two a process. With --mix rows of real lengths are packed and given
to each the way its own packing does: positions that begin anew for transformers, lengths for
Unsloth; with --padded they are padded to the longest of the batch, with an attention mask.
Started by torchrun, each process trains on rows of its own and DDP averages the gradients; the
tokens are those of all.
--tiny tries `plain` on a CPU.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

PEER = sys.argv[1] if len(sys.argv) > 1 else ""
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if WORLD > 1:
    os.environ["CUDA_VISIBLE_DEVICES"] = str(RANK)  # to each process its GPU is the first
if PEER == "unsloth":
    from unsloth import FastLanguageModel  # it must come before transformers

import torch
from peft import LoraConfig, get_peft_model
from qlora_gpu import SHAPES, batches, blank, pack, real_tokens
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STORED = dict(
    quant_method="bitsandbytes",
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="bfloat16",
)


def tokenizer(folder: Path) -> None:
    "Unsloth loads no model without a tokenizer; its words do not matter here."
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.train_from_iterator(
        ["hello world"],
        trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<s>", "</s>", "<pad>"],
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def checkpoint(shape: str, method: str, folder: Path, device: str) -> Path:
    "A folder with random weights of the shape, made once."
    folder = folder / f"{shape}-{method}"
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    model = blank(LlamaConfig(**SHAPES[shape]), device)
    if method == "lora":
        pack(model)
    weights = {
        name: t.contiguous()
        for name, t in model.state_dict().items()
        if not (SHAPES[shape]["tie_word_embeddings"] and name == "lm_head.weight")
    }
    save_file(
        {name: t.cpu() for name, t in weights.items()},
        folder / "model.safetensors",
        metadata=dict(format="pt"),
    )
    tokenizer(folder)
    (folder / "config.json").write_text(
        json.dumps(
            dict(
                LlamaConfig(**SHAPES[shape], pad_token_id=0).to_dict(),
                architectures=["LlamaForCausalLM"],
                dtype="bfloat16" if device == "cuda" else "float32",
            )
            | (dict(quantization_config=STORED) if method == "lora" else {})
        )
    )
    return folder


def load(folder: Path, method: str, rank: int, activations: str, length: int, device: str):
    "The peer's model, ready to train."
    recompute = activations == "default"
    if PEER == "unsloth":
        model, _ = FastLanguageModel.from_pretrained(
            str(folder),
            max_seq_length=length,
            dtype=torch.bfloat16,
            load_in_4bit=method == "lora",
            full_finetuning=method == "full",
            local_files_only=True,
            use_gradient_checkpointing="unsloth" if recompute else False,
        )
        return (
            model
            if method == "full"
            else FastLanguageModel.get_peft_model(
                model,
                r=rank,
                lora_alpha=2 * rank,
                lora_dropout=0,
                bias="none",
                target_modules=TARGETS,
                use_gradient_checkpointing="unsloth" if recompute else False,
                random_state=0,
            )
        )
    if PEER == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
        device_map={"": device},
        attn_implementation="sdpa",
    )
    if method == "lora":
        model.requires_grad_(False)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        model.enable_input_require_grads()
    model.config.use_cache = False
    return (
        model
        if method == "full"
        else get_peft_model(
            model,
            LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                lora_dropout=0.0,
                target_modules=TARGETS,
                task_type="CAUSAL_LM",
            ),
        )
    )


def as_packed(batch: dict) -> dict:
    """A packed batch as Unsloth's own packing gives it.

    One row, the lengths of its texts, no loss across a boundary."""
    positions = batch["position_ids"].flatten()
    starts = (positions == 0).nonzero().flatten()
    labels = batch["labels"].flatten().clone()
    labels[starts] = -100
    lengths = torch.diff(starts, append=torch.tensor([len(positions)]))
    return dict(
        input_ids=batch["input_ids"].reshape(1, -1),
        labels=labels[None],
        position_ids=positions[None],
        packed_seq_lengths=lengths.int(),
        use_cache=False,
    )


def as_padded(batch: dict, padding: torch.Tensor) -> dict:
    "A padded batch as transformers' collators give it."
    return dict(
        input_ids=batch["input_ids"], labels=batch["labels"], attention_mask=(~padding).long()
    )


def measure(
    model,
    words: int,
    rows: int,
    length: int,
    device: str,
    mix: str | None,
    padded: int | None = None,
    steps: int = 5,
) -> dict:
    "Tokens a second and peak memory, as `qlora_gpu.py` measures ours."
    model.train()
    cuda, batch_of = device == "cuda", batches(words, rows, length, mix, padded)
    parallel = DistributedDataParallel(model) if WORLD > 1 else model
    optimizer, seconds, trained, read = (
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=cuda),
        [],
        [],
        [],
    )
    for number in range(steps + 3):
        batch = batch_of(number * WORLD + RANK)
        padding = batch["input_ids"] < 0
        read.append(real_tokens(batch))
        trained.append((batch["labels"][:, 1:] != -100).sum().item())
        if padded:
            batch = as_padded(batch, padding)
        elif mix is None:
            batch.pop("position_ids")
        elif PEER == "unsloth":
            batch = as_packed(batch)
        batch = {name: t.to(device) if torch.is_tensor(t) else t for name, t in batch.items()}
        if cuda:
            torch.cuda.synchronize()
        if cuda and number == 2:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            loss = parallel(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    if WORLD > 1:
        for counts in (read, trained):
            whole = torch.tensor(counts, device=device)
            torch.distributed.all_reduce(whole)
            counts[:] = whole.tolist()
    speed = lambda tokens: round(
        statistics.median(n / t for n, t in list(zip(tokens, seconds))[3:])
    )
    return dict(
        rows=rows,
        length=length,
        mix=mix and Path(mix).stem,
        padded=padded,
        tokens_per_second=speed(read),
        trained_per_second=speed(trained),
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else 0.0,
        first_step_s=round(seconds[0], 1),
    )


def main() -> None:
    parser, several = (
        argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        ),
        lambda text: text.split(","),
    )
    parser.add_argument("peer", choices=["plain", "liger", "unsloth"])
    parser.add_argument("--shapes", type=several, default=["1B", "8B"])
    parser.add_argument("--lengths", type=several, default=["2048"])
    parser.add_argument("--ranks", type=several, default=["16"])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--activations", type=several, default=["keep"])
    parser.add_argument("--mix")
    parser.add_argument("--padded", type=int)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "llmtrainer-peers"
    )
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.peer == "unsloth" and len(given.activations) > 1:
        parser.error("Unsloth goes on as its first model was told: one of --activations a process")
    if given.tiny:
        given.shapes, given.lengths, given.tokens = ["tiny"], ["32"], 64
    elif not torch.cuda.is_available():
        return print("no NVIDIA GPU here; --tiny tries `plain` on a CPU")
    device = "cpu" if given.tiny else "cuda"
    if WORLD > 1:
        torch.distributed.init_process_group("gloo" if given.tiny else "nccl")
        given.folder = given.folder / str(RANK)
    for shape in given.shapes:
        folder = checkpoint(shape, given.method, given.folder, device)
        for rank in map(int, given.ranks):
            for activations in given.activations:
                model = load(
                    folder, given.method, rank, activations, max(map(int, given.lengths)), device
                )
                for length in map(int, given.lengths):
                    gc.collect()
                    torch.cuda.empty_cache()
                    try:
                        found = measure(
                            model,
                            SHAPES[shape]["vocab_size"],
                            max(1, given.tokens // length),
                            length,
                            device,
                            given.mix,
                            given.padded,
                        )
                    except torch.OutOfMemoryError:
                        found = dict(length=length, out_of_memory=True)
                    if RANK > 0:
                        continue
                    print(
                        json.dumps(
                            dict(
                                peer=PEER,
                                gpus=WORLD,
                                shape=shape,
                                method=given.method,
                                r=rank,
                                activations=activations,
                            )
                            | found
                        ),
                        flush=True,
                    )
                del model


if __name__ == "__main__":
    main()
