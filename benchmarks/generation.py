"""Writing 128 tokens after a prompt of 32, against `transformers.generate` with its cache and our own loop without one.

    python benchmarks/generation.py [--threads 2] [--rounds 7] [--tokens 128]

6 layers, 6 heads, width 384, vocabulary 1,024, greedy; every contender has the same weights, and writes the same text
in float32. The bare products with the weights, a token at a time, are in the table too, as the limit. Also: the
milliseconds that `import slm` adds to `import torch`.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import bar, interleave, machine, ratio
from transformers import AutoModelForCausalLM

from slm import GPT, GPTConfig
from slm.generation import Sampling, generate_tokens

PROMPT, VOCABULARY = 32, 1024


def added_by_import(name: str, after: str, processes: int) -> float:
    """Milliseconds that `import name` takes once `after` is imported: the median of fresh processes."""
    code = f"import {after}, time; t = time.perf_counter(); import {name}; print(1000 * (time.perf_counter() - t))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        for _ in range(processes)
    ]
    return statistics.median(float(run.stdout) for run in runs)


def contenders(
    model: GPT, prompts: list[list[int]], tokens: int
) -> dict[str, Callable[[], list[list[int]]]]:
    """Functions that write `tokens` greedy tokens after each prompt and return them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa"
        ).eval()
    half = copy.deepcopy(model).bfloat16()
    batch = torch.tensor(prompts)  # (B, T)

    def ours(model: GPT, use_cache: bool = True) -> list[list[int]]:
        sampling = Sampling(tokens, temperature=0, use_cache=use_cache)
        steps = list(generate_tokens(model, prompts, sampling))
        return [[int(token or 0) for token in row] for row in zip(*steps, strict=True)]

    def transformers() -> list[list[int]]:
        out = theirs.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            eos_token_id=None,
        )
        return out[:, PROMPT:].tolist()

    def bare(model: GPT) -> list[list[int]]:
        positions = model.tables()[1]  # looked up, not multiplied
        matrices = [
            p for p in model.parameters() if p.dim() == 2 and p is not positions
        ]
        rows = [
            torch.randn(len(prompts), matrix.size(1)).to(matrix.dtype)
            for matrix in matrices
        ]
        with torch.inference_mode():
            for _ in range(tokens):
                for row, matrix in zip(rows, matrices, strict=True):
                    F.linear(row, matrix)
        return []

    return {
        "slm": lambda: ours(model),
        "slm, no cache": lambda: ours(model, use_cache=False),
        "slm, bfloat16": lambda: ours(half),
        "transformers": transformers,
        "bare products": lambda: bare(model),
        "bare products, bfloat16": lambda: bare(half),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(machine())
    model = GPT(
        GPTConfig(VOCABULARY, PROMPT + arguments.tokens, 6, 6, 384, 1536)
    ).eval()
    verdicts = []
    for B, wanted in ((1, 1.05), (8, 1.2)):
        run = contenders(
            model, torch.randint(VOCABULARY, (B, PROMPT)).tolist(), arguments.tokens
        )
        texts = {name: write() for name, write in run.items()}
        seconds = interleave(run, arguments.rounds)
        print(f"\nbatch {B}, {PROMPT} + {arguments.tokens} tokens\n")
        print(
            "| contender | tokens/s | time against slm | same text |\n|---|---|---|---|"
        )
        for name, times in seconds.items():
            same = texts[name] == texts["slm"] if texts[name] else ""
            rate = B * arguments.tokens / statistics.median(times)
            print(
                f"| {name} | {rate:,.0f} | {ratio(seconds, name, 'slm'):.2f} | {same} |"
            )
        verdicts.append(
            bar(
                f"batch {B}: against transformers",
                ratio(seconds, "transformers", "slm"),
                wanted,
            )
        )
        if B == 1:
            verdicts.append(
                bar(
                    "batch 1: against no cache",
                    ratio(seconds, "slm, no cache", "slm"),
                    4.5,
                )
            )
            verdicts.append(
                bar(
                    "batch 1: float32, in which models are loaded, against bfloat16",
                    ratio(seconds, "slm, bfloat16", "slm"),
                    1.0,
                )
            )
            limit = ratio(seconds, "bare products, bfloat16", "bare products")
            verdicts.append(f"        (the bare products alone: {limit:.2f})")
    added = added_by_import("slm", "torch", arguments.rounds)
    verdicts.append(
        bar(
            "milliseconds that `import slm` adds to `import torch`",
            added,
            150,
            at_most=True,
        )
    )
    everything = added_by_import(
        "slm.generation, slm.training.trainer", "torch", arguments.rounds
    )
    print("\n" + "\n".join(verdicts))
    print(f"        (the whole package but cost and command line: {everything:.0f} ms)")


if __name__ == "__main__":
    main()
