"""What an engine costs in quality: a Llama is pretrained, quantised, and tuned by each engine.

    python benchmarks/quality_gpu.py TEXT.npz ROWS.npz [--seconds 60] [--seeds 3]
        [--engines reference,fused,fp8] [--base FOLDER] [--tiny]

The model has 280M parameters, is pretrained for a minute and quantised to NF4; the seeds are the
same for each engine. TEXT.npz holds `ids`, the tokens of plain text. ROWS.npz holds `train_ids`,
`train_mask`, `test_ids`, `test_mask`: rows of one length, and which of their tokens are trained.
Prints a JSON line for each run (validation loss along the way), and after the first seed one for
each engine with the cosines of its adapter gradients against float32 arithmetic over the same
weights. --base takes a pretrained Llama from a folder instead, and TEXT.npz is not read. --write
RECIPE makes ROWS.npz of a recipe's data. --tiny tries the script on a CPU with made-up tokens.
"""

import argparse
import gc
import json
import math
import statistics
import time
from collections import defaultdict

import numpy as np
import torch
from qlora_gpu import engine_by_name, pack
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from llmtrainer.data.prepare import prepare
from llmtrainer.models.engines import fuse_model, token_loss
from llmtrainer.models.load import load_tokenizer
from llmtrainer.models.lora import Adapt
from llmtrainer.models.variants import adapt_model
from llmtrainer.pipeline import read_recipe

SIZE = dict(
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=50304,
)
SMALL = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=512,
)


def empty(size, device: str):
    "A new model in float32, of these sizes or this configuration."
    torch.manual_seed(0)
    config = (
        LlamaConfig(**size, max_position_embeddings=4096, tie_word_embeddings=True)
        if isinstance(size, dict)
        else size
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )


def filled(rows, dtype, length: int) -> np.ndarray:
    "Rows of numbers as one array, with zeros on the right."
    return np.stack([np.pad(np.asarray(row, dtype), (0, length - len(row))) for row in rows])


def write_rows(recipe: str, target: str, length: int) -> None:
    "Rows of a recipe's data, of one length, and which of their tokens are trained."
    job = read_recipe(recipe)
    found, arrays = prepare(job.data, load_tokenizer(job.model.base)), {}
    held = [rows.rows[i] for rows in found.val.values() for together in rows.bins for i in together]
    for split, texts in (("train", found.encoded), ("test", held)):
        texts = [t for t in texts if len(t) <= length]
        arrays |= {
            f"{split}_ids": filled([t.ids for t in texts], np.uint16, length),
            f"{split}_mask": filled([t.trained for t in texts], np.uint8, length),
        }
    np.savez_compressed(target, **arrays)
    print(
        {name: a.shape for name, a in arrays.items()},
        int(arrays["train_mask"].sum()),
        "tokens trained",
    )


def loss_of(model, batch: dict, device: str) -> torch.Tensor:
    "Mean loss of a batch, in bfloat16 on a GPU."
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        total, count = token_loss(model, batch)
    return total / count


def pretrain(
    model, ids: np.ndarray, seconds: float, rows: int, length: int, device: str
) -> list[float]:
    """Next-token training on plain text for so many seconds after compilation.

    The learning rate falls along a cosine."""
    fuse_model(model, "fused")
    optimizer, draw, losses, began = (
        torch.optim.AdamW(
            model.parameters(), 1e-3, (0.9, 0.95), weight_decay=0.1, fused=device == "cuda"
        ),
        np.random.default_rng(0),
        [],
        None,
    )
    while (share := 0 if began is None else (time.perf_counter() - began) / seconds) < 1:
        at = draw.integers(0, len(ids) - length, rows)
        x = torch.from_numpy(np.stack([ids[i : i + length] for i in at]).astype(np.int64)).to(
            device
        )
        for group in optimizer.param_groups:
            group["lr"] = (
                1e-3
                * min(1, (len(losses) + 1) / 30)
                * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
            )
        loss = loss_of(
            model,
            dict(
                input_ids=x,
                labels=x,
                position_ids=torch.arange(length, device=device).expand(rows, length),
            ),
            device,
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if len(losses) == 3:
            began = time.perf_counter()
    return losses


def quantised(state: dict, size: dict, seed: int, device: str):
    "The pretrained model in NF4 with fresh adapters."
    model = empty(size, device)
    model.load_state_dict(state)
    model = pack(model.to(torch.bfloat16) if device == "cuda" else model)
    return adapt_model(model, Adapt(r=16), seed).train()


def row_batch(rows: dict, split: str, at, device: str) -> dict:
    "Rows as a batch; what is not trained is -100."
    ids, mask = (
        torch.from_numpy(rows[f"{split}_{name}"][at].astype(np.int64)).to(device)
        for name in ("ids", "mask")
    )
    return dict(
        input_ids=ids,
        labels=torch.where(mask == 1, ids, -100),
        position_ids=torch.arange(ids.shape[1], device=device).expand_as(ids),
    )


@torch.no_grad()
def validation(model, rows: dict, count: int, device: str) -> float:
    "Mean loss of trained tokens of the first test rows."
    model.eval()
    found = []
    for lo in range(0, count, 128):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            found.append(
                torch.stack(token_loss(model, row_batch(rows, "test", slice(lo, lo + 128), device)))
            )
    model.train()
    total, count = torch.stack(found).sum(0).tolist()
    return total / count


def tune(
    model, rows: dict, seed: int, size: int, device: str, checks: int, epochs: int
) -> list[float]:
    "Tune on the rows; validation losses along the way."
    n = len(rows["train_ids"])
    order = np.concatenate(
        [np.random.default_rng((seed, epoch)).permutation(n) for epoch in range(epochs)]
    )
    steps = len(order) // size
    optimizer, curve = (
        torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], 5e-4, fused=device == "cuda"
        ),
        [],
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1, (step + 1) / 10) * (1 - step / steps)
        loss_of(
            model, row_batch(rows, "train", order[step * size : (step + 1) * size], device), device
        ).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(1, steps // checks) == 0 or step + 1 == steps:
            curve.append(round(validation(model, rows, min(512, len(rows["test_ids"])), device), 5))
    return curve


def gradients(
    state: dict, tuned: dict, size: dict, engine: str, rows: dict, device: str, work
) -> dict:
    "Adapter gradients of one batch; `float32` computes the same NF4 weights in float32."
    model = quantised(state, size, 0, device)
    model.load_state_dict(tuned, strict=False)
    if engine == "float32":
        for m in model.modules():
            if hasattr(m, "compute_dtype"):
                m.compute_dtype = torch.float32
        for p in model.parameters():
            p.data = p.data.float() if p.is_floating_point() else p.data
        total, count = token_loss(model, row_batch(rows, "test", slice(0, 64), device))
        (total / count).backward()
    else:
        work(model, engine)
        loss_of(model, row_batch(rows, "test", slice(0, 64), device), device).backward()
    return {
        name: p.grad.float().flatten().cpu()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def cosines(ours: dict, known: dict) -> dict:
    "Median and least cosine, and the least of each projection."
    each = {
        name: torch.nn.functional.cosine_similarity(ours[name], g, 0).item()
        for name, g in known.items()
    }
    least = defaultdict(lambda: 1.0)
    for name, value in each.items():
        least[name.split(".")[-4]] = min(least[name.split(".")[-4]], value)
    return dict(
        median=round(statistics.median(each.values()), 5),
        least=round(min(each.values()), 5),
        at=min(each, key=each.get),
        by_projection={name: round(value, 5) for name, value in least.items()},
    )


def main(work=engine_by_name) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = lambda text: text.split(",")
    parser.add_argument("text", nargs="?")
    parser.add_argument("rows", nargs="?")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--engines", type=several, default=["reference", "fused", "fp8"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--checks", type=int, default=8, help="validations in a run")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--base", help="the folder of a pretrained Llama")
    parser.add_argument("--write", metavar="RECIPE")
    parser.add_argument("--length", type=int, default=512)
    given = parser.parse_args()
    device, size = (
        "cuda" if torch.cuda.is_available() and not given.tiny else "cpu",
        SMALL if given.tiny else SIZE,
    )
    if given.write:
        return write_rows(given.write, given.rows or given.text, given.length)
    if given.tiny:
        draw = np.random.default_rng(0)
        text, rows = (
            draw.integers(3, 512, 20000),
            {
                f"{split}_{name}": draw.integers(3, 512, (64, 32))
                if name == "ids"
                else np.ones((64, 32))
                for split in ("train", "test")
                for name in ("ids", "mask")
            },
        )
        given.seconds, given.batch = 2, 16
    elif device == "cpu":
        return print("no NVIDIA GPU here; --tiny tries the script on a CPU")
    else:
        text, rows = (
            None if given.base else np.load(given.text)["ids"],
            dict(np.load(given.rows or given.text)),
        )
    if given.base:
        size = AutoConfig.from_pretrained(given.base)
    model = empty(size, device)
    if given.base:
        model.load_state_dict(
            AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32).state_dict()
        )
        losses = []
    else:
        losses = pretrain(
            model,
            text,
            seconds=given.seconds,
            rows=4 if given.tiny else 16,
            length=64 if given.tiny else 1024,
            device=device,
        )
    print(
        json.dumps(
            dict(
                gpu=torch.cuda.get_device_name() if device == "cuda" else "cpu",
                parameters=sum(p.numel() for p in model.parameters()),
                pretrained_steps=len(losses),
                pretrained_loss=losses and round(statistics.mean(losses[-10:]), 3),
            )
        ),
        flush=True,
    )
    state, tuned = {name: t.detach().clone() for name, t in model.state_dict().items()}, None
    del model
    for seed in range(given.seeds):
        for engine in given.engines:
            gc.collect()
            torch.cuda.empty_cache()
            model, began = quantised(state, size, seed, device), time.perf_counter()
            work(model, engine)
            first = round(validation(model, rows, min(512, len(rows["test_ids"])), device), 5)
            curve = tune(model, rows, seed, given.batch, device, given.checks, given.epochs)
            print(
                json.dumps(
                    dict(
                        engine=engine,
                        seed=seed,
                        first=first,
                        curve=curve,
                        last=curve[-1],
                        seconds=round(time.perf_counter() - began, 1),
                    )
                ),
                flush=True,
            )
            if tuned is None:
                tuned = {
                    name: p.detach().clone()
                    for name, p in model.named_parameters()
                    if p.requires_grad
                }
            del model
        if seed == 0:
            known = gradients(state, tuned, size, "float32", rows, device, work)
            for engine in given.engines:
                print(
                    json.dumps(
                        dict(
                            engine=engine,
                            cosine=cosines(
                                gradients(state, tuned, size, engine, rows, device, work), known
                            ),
                        )
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
