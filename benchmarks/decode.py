"""How fast texts are written: the writer beside transformers' generate, one JSON line each.

    python benchmarks/decode.py [--shapes 8B] [--forms bf16,nf4] [--rows 1,32,128] [--mixed 256]

The weights are random and on the device: only their shape and number format matter for the speed.
"""

import argparse
import json
import random
import time

import torch
from peft import LoraConfig, get_peft_model
from qlora_gpu import pack
from transformers import AutoModelForCausalLM, LlamaConfig, StoppingCriteria, StoppingCriteriaList

from llmtrainer.models.decode import Choice, Writer

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "tiny": (256, 640, 5, 8, 4, 1024),
    "100M": (768, 2048, 10, 12, 4, 16384),
    "1B": (2048, 8192, 16, 32, 8, 128256),
    "3B": (3072, 8192, 28, 24, 8, 128256),
    "8B": (4096, 14336, 32, 32, 8, 128256),
}


def shape_config(shape: str) -> LlamaConfig:
    "The configuration of a shape of Llama 3."
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        rope_parameters=dict(rope_type="default", rope_theta=500000.0),
        tie_word_embeddings=shape in ("1B", "3B"),
    )


def make(shape: str, form: str, device: str, lora: bool):
    "A model of random weights in a number format."
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape_config(shape), dtype=dtype)
    model = model.to(dtype).eval()
    if form == "nf4":
        pack(model)
    if lora:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=16, target_modules=targets)).eval()
    return model


def clock(device: str) -> float:
    "Seconds, after the device has done its work."
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_prompts(draw, rows: int, length: int, vocabulary: int) -> list[list[int]]:
    "Ids of prompts."
    return [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(rows)]


def by_generate(model, prompts, new: int):
    "Rows of the same length by transformers' generate."
    ids = torch.tensor(prompts, device=model.device)
    options = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)


def by_writer(model, prompts, rooms, slots: int, choice: Choice):
    "(tokens, writer) of rows by the writer."
    writer = Writer(model, slots=slots, choice=choice)
    requests = [(ids, room, number) for number, (ids, room) in enumerate(zip(prompts, rooms))]
    rows = [row for row in writer.write(requests) if row.done]
    return sum(len(row.ids) for row in rows), writer


class Rooms(StoppingCriteria):
    "Ends each row after its own number of tokens."

    def __init__(self, rooms, start: int):
        self.rooms, self.start = torch.tensor(rooms), start

    def __call__(self, input_ids, scores, **_):
        return (input_ids.shape[1] - self.start >= self.rooms).to(input_ids.device)


def mixed(model, prompts, rooms, slots: int, batches: int):
    "Seconds of sorted batches by generate, each of which waits for its longest answer."
    begun = clock(model.device.type)
    starts = range(0, len(prompts), slots)
    for first in starts[:batches]:
        ids = torch.tensor(prompts[first : first + slots], device=model.device)
        part = rooms[first : first + slots]
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max(part),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([Rooms(part, ids.shape[1])]),
        )
    return (clock(model.device.type) - begun) * len(starts) / len(starts[:batches])


def report(**facts) -> None:
    "One line of JSON."
    print(json.dumps(facts), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="8B")
    parser.add_argument("--forms", default="bf16")
    parser.add_argument("--rows", default="1,32,128")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--mixed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--batches", type=int, help="of --mixed by generate; the rest is assumed")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--own", action="store_true", help="leave generate out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    name = torch.cuda.get_device_name() if a.device == "cuda" else "cpu"
    for shape, form in ((s, f) for s in a.shapes.split(",") for f in a.forms.split(",")):
        model = make(shape, form, a.device, a.lora)
        draw = random.Random(0)
        vocabulary = shape_config(shape).vocab_size

        for rows in map(int, filter(None, a.rows.split(","))):
            ratios = []
            for _ in range(a.pairs):
                ids = random_prompts(draw, rows, length=a.prompt, vocabulary=vocabulary)
                facts = dict(card=name, shape=shape, form=form, lora=a.lora, rows=rows)
                seconds = {}
                if not a.own:
                    by_generate(model, ids, 2)  # loads its kernels
                    begun = clock(a.device)
                    by_generate(model, ids, a.new)
                    seconds["generate"] = clock(a.device) - begun
                for run in ("first", "own"):
                    begun = clock(a.device)
                    _, writer = by_writer(model, ids, [a.new] * rows, rows, Choice())
                    seconds[run] = clock(a.device) - begun
                rates = {key: round(rows * a.new / s, 1) for key, s in seconds.items()}
                ratios.append(seconds.get("generate", 0) / seconds["own"])
                peak = torch.cuda.max_memory_allocated() / 2**30 if a.device == "cuda" else 0
                report(**facts, tokens_per_second=rates, gib=round(peak, 1), why=writer.run.failure)
            if a.pairs > 1:
                report(rows=rows, median_ratio=round(sorted(ratios)[len(ratios) // 2], 2))
        if a.mixed:
            ids = random_prompts(draw, a.mixed, length=a.prompt, vocabulary=vocabulary)
            rooms = [draw.randint(a.new // 4, 4 * a.new) for _ in ids]
            begun = clock(a.device)
            by_writer(model, ids, rooms, a.slots, Choice())
            own = clock(a.device) - begun
            theirs = 0.0 if a.own else mixed(model, ids, rooms, slots=a.slots, batches=a.batches)
            facts = dict(card=name, shape=shape, form=form, mixed=a.mixed, slots=a.slots)
            seconds = dict(own=round(own, 2), generate=round(theirs, 2))
            report(**facts, tokens=sum(rooms), seconds=seconds, tokens_per_second=sum(rooms) / own)
        del model
        if a.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
