"""Speed and memory of QLoRA training steps on one NVIDIA GPU, engine by engine.

    python benchmarks/qlora_gpu.py [--shapes 1B,8B] [--engines reference,fused,fp8,fp8:all]
        [--lengths 2048] [--tokens 16384] [--ranks 16] [--accumulate 2] [--mix FILE]
        [--padded TEXTS]
        [--activations keep,recompute,recompute:10,offload] [--method lora|full] [--profile]
        [--budgets 16,24,40,80]

Weights are random, made in place and quantised to NF4; adapters on all linear layers (--method
full: all weights trained, in bf16). Neither time nor memory depends on their values, so nothing is
downloaded. `qlora_peers.py` measures the peers at the same work. Medians of the timed steps; the
first step's time holds the compilation. --budgets measures what `activations: auto` chooses for so
many GiB, with the allocator limited to them. --tiny tries the script on a CPU, where its figures
mean nothing.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.initialization import no_init_weights

from llmtrainer.data.loss_mask import Encoded
from llmtrainer.data.packing import make_sequences, pad_batch
from llmtrainer.models.activations import (
    apply_activation_checkpointing,
    choose_policy,
    decoder_layers,
    remove_activation_checkpointing,
)
from llmtrainer.models.engines import fuse_model, token_loss
from llmtrainer.models.load import keep_trainable
from llmtrainer.models.lora import Adapt
from llmtrainer.models.memory import StepShape, predict_memory
from llmtrainer.models.variants import adapt_model

HEADS = dict(
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=16384,
    rope_theta=500000.0,
    bos_token_id=1,
    eos_token_id=2,
)
SHAPES = {
    "1B": dict(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        head_dim=64,
        tie_word_embeddings=True,
    )
    | HEADS,
    "3B": dict(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        head_dim=128,
        tie_word_embeddings=True,
    )
    | HEADS,
    "8B": dict(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        head_dim=128,
        tie_word_embeddings=False,
    )
    | HEADS,
    "tiny": dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=16,
        tie_word_embeddings=True,
    )
    | HEADS
    | dict(num_key_value_heads=2, vocab_size=512),
}


def blank(config: LlamaConfig, device: str):
    "A model with random weights, in 16 bits on a GPU."
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    with no_init_weights(), torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    with torch.no_grad():  # transformers' own way takes most of a minute for 8B
        for p in model.parameters():
            p.normal_(0, 0.02) if p.dim() > 1 else p.fill_(1)
    return model


def pack(model, sharded: bool = False):
    "The linear layers in NF4; `sharded` for FSDP, which wants one format for all weights."
    head, device = model.get_output_embeddings(), model.device
    storage = dict(quant_storage=model.dtype if sharded else torch.uint8)
    for name, layer in [
        (n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    ]:
        new = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=False,
            compute_dtype=model.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
            **storage,
        )
        new.weight = bnb.nn.Params4bit(
            layer.weight.data,
            requires_grad=False,
            quant_type="nf4",
            compress_statistics=True,
            module=new,
            **storage,
        )
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new.to(device))
    model.is_loaded_in_4bit = True
    keep_trainable(model)
    return model


def make(shape: str, rank: int, device: str, method: str = "lora"):
    "A model with random weights in NF4 and fresh adapters; or with all weights to train."
    model = blank(LlamaConfig(**SHAPES[shape]), device)
    return model.train() if method == "full" else adapt_model(pack(model), Adapt(r=rank), 0).train()


def engine_by_name(model, engine: str):
    "An engine by its name; `fp8:all` says what is in 8 bits."
    name, _, fp8 = engine.partition(":")
    return fuse_model(model, name, **(dict(fp8=fp8) if fp8 else {}))


def texts_of(file: str, words: int) -> list[Encoded]:
    """Random tokens in texts of real lengths, of which the last tokens are trained.

    `file` holds a JSON list of [tokens, trained]."""
    draw = np.random.default_rng(0)
    return [
        Encoded(draw.integers(3, words, n).tolist(), [(n - trained, n)])
        for n, trained in json.loads(Path(file).read_text())
    ]


def batches(words: int, rows: int, length: int, mix: str | None, padded: int | None = None):
    """A function from a step's number to its batch.

    The rows are random and whole, or with `mix` texts of real lengths: packed to `length`, or
    `padded` of them in a batch, each filled up to the longest."""
    if mix is None:
        ids = lambda number: torch.randint(
            3, words, (rows, length), generator=torch.Generator().manual_seed(number)
        )
        return lambda number: dict(
            input_ids=(found := ids(number)),
            position_ids=torch.arange(length).expand(rows, length),
            labels=found,
        )
    texts = texts_of(mix, words)
    sequences = make_sequences(texts, [len(text) for text in texts], length, packing=not padded)
    count = padded or rows
    return lambda number: pad_batch(
        [sequences[(number * count + i) % len(sequences)] for i in range(count)], -1
    )


def real_tokens(batch: dict) -> int:
    "How many places of a batch are no padding; those that are get a word of the model."
    padding = batch["input_ids"] < 0
    batch["input_ids"] = batch["input_ids"].masked_fill(padding, 0)
    return int((~padding).sum())


def measure(
    model,
    words: int,
    rows: int,
    length: int,
    activations: str,
    device: str,
    steps: int = 5,
    profile: bool = False,
    accumulate: int = 1,
    mix: str | None = None,
    padded: int | None = None,
) -> dict:
    "Tokens a second, peak memory and the first step's time; a step is `accumulate` batches."
    policy, _, count = activations.partition(":")
    layers, batch_of = decoder_layers(model), batches(words, rows, length, mix, padded)
    apply_activation_checkpointing(layers, policy, int(count) if count else None)
    weights, cuda = [p for p in model.parameters() if p.requires_grad], device == "cuda"
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=cuda)
    seconds, trained, read = [], [], []

    def step(number: int) -> None:
        given = [batch_of(number * accumulate + i) for i in range(accumulate)]
        read.append(sum(map(real_tokens, given)))
        given = [{name: t.to(device) for name, t in batch.items()} for batch in given]
        trained.append(sum((batch["labels"][:, 1:] != -100).sum().item() for batch in given))
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        for batch in given:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=cuda):
                total, _ = token_loss(model, batch)
            (total / trained[-1]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)

    gc.collect()
    torch.cuda.empty_cache()
    for number in range(steps + 3):
        if cuda and number == 2:
            torch.cuda.reset_peak_memory_stats()
        step(number)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    if profile:
        with torch.profiler.profile() as seen:
            step(99)
        print(
            seen.key_averages().table(
                sort_by="self_cuda_time_total" if cuda else "self_cpu_time_total",
                row_limit=40,
                max_name_column_width=90,
            ),
            flush=True,
        )
    remove_activation_checkpointing(layers)
    speed = lambda tokens: round(
        statistics.median(n / t for n, t in list(zip(tokens, seconds))[3 : steps + 3])
    )
    return dict(
        rows=rows,
        length=length,
        accumulate=accumulate,
        activations=activations,
        mix=mix and Path(mix).stem,
        padded=padded,
        tokens_per_second=speed(read),
        trained_per_second=speed(trained),
        peak_gib=round(peak, 2),
        first_step_s=round(seconds[0], 1),
    )


def policy_for(shape: str, engine: str, rows: int, length: int, rank: int, gib: float) -> str:
    "What `auto` chooses for NF4 and compiled layers where so much memory is there."
    config, facts = LlamaConfig(**SHAPES[shape]), dict(mixed=True, sliced=True, compiled=True)
    facts |= dict(fp8=engine.startswith("fp8:"))

    def peak(recompute: bool) -> int:
        step = StepShape(rows, length, recompute, quantize="nf4", **facts)
        return predict_memory(config, Adapt(r=rank), step)["total"]

    kept, lean, budget = peak(False), peak(True), int(0.95 * gib * 2**30)
    layers = config.num_hidden_layers
    policy, count = choose_policy(kept, lean, layers=layers, budget=budget)
    return policy if policy != "recompute" else f"recompute:{count}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = lambda text: text.split(",")
    parser.add_argument("--shapes", type=several, default=["1B", "8B"])
    parser.add_argument("--engines", type=several, default=["reference", "fused", "fp8"])
    parser.add_argument("--lengths", type=several, default=["2048"])
    parser.add_argument("--ranks", type=several, default=["16"])
    parser.add_argument("--tokens", type=int, default=16384, help="in a step")
    parser.add_argument(
        "--activations",
        type=several,
        default=["keep"],
        help="keep, recompute, recompute:LAYERS, offload",
    )
    parser.add_argument("--profile", action="store_true")
    parser.add_argument(
        "--tiny", action="store_true", help="a small shape on a CPU, to try the script"
    )
    parser.add_argument(
        "--accumulate", type=int, default=1, help="batches in a step, which share its tokens"
    )
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument(
        "--mix",
        help="lengths of real texts, which are packed: a JSON list of [tokens, trained]",
    )
    parser.add_argument(
        "--padded", type=int, help="with --mix: so many texts in a batch, padded instead of packed"
    )
    parser.add_argument("--budgets", type=several, default=[], help="GiB that a GPU has")
    given = parser.parse_args()
    if given.tiny:
        given.shapes, given.engines, given.lengths, given.tokens, given.activations = (
            ["tiny"],
            ["reference", "fused", "fp8"],
            ["32"],
            64,
            ["keep", "recompute:1", "offload"],
        )
    elif not torch.cuda.is_available():
        return print("no NVIDIA GPU here; --tiny tries the script on a CPU")
    else:
        print(torch.cuda.get_device_name(), torch.__version__)
    device = "cpu" if given.tiny else "cuda"
    for shape in given.shapes:
        for rank in map(int, given.ranks):
            for engine in given.engines:
                model = make(shape, rank, device, given.method)
                engine_by_name(model, engine)
                for length in map(int, given.lengths):
                    rows = max(1, given.tokens // length // given.accumulate)
                    cases = [(activations, None) for activations in given.activations]
                    for gib in map(float, given.budgets):
                        cases.append((policy_for(shape, engine, rows, length, rank, gib), gib))
                    for activations, gib in cases:
                        about = dict(shape=shape, engine=engine, method=given.method, r=rank)
                        if gib and device == "cuda":
                            total = torch.cuda.get_device_properties(0).total_memory
                            torch.cuda.empty_cache()
                            torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)
                            about["budget_gib"] = gib
                        try:
                            found = measure(
                                model,
                                SHAPES[shape]["vocab_size"],
                                rows,
                                length,
                                activations,
                                device,
                                profile=given.profile,
                                accumulate=given.accumulate,
                                mix=given.mix,
                                padded=given.padded,
                            )
                        except torch.OutOfMemoryError:
                            found = dict(length=length, activations=activations, out_of_memory=True)
                        print(json.dumps(about | found), flush=True)
                del model
                gc.collect()
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
