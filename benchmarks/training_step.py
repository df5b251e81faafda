"""A training step against plain GPTs, and against two made of other people's parts.

    python benchmarks/training_step.py [--threads 2] [--rounds 9] [--steps 3] [--only float32]

Contenders, each with the same shape (6 layers, 6 heads, width 384, 256 tokens), dtype, data and fused AdamW:

- this package's `GPT.loss`, and with the large vocabulary also its logits with PyTorch's cross entropy ("plain loss");
- a plain GPT of the usual kind, written here: PyTorch's fused attention, the exact GELU, all logits and PyTorch's
  cross entropy; the same with attention written out, its mask a buffer that is added; and the same with GPT-2's form
  of the GELU, which published weights need, so that it computes what the package does;
- `transformers.GPT2LMHeadModel` with its loss, on the faster of its attention kernels (sdpa);
- a GPT of `torch.nn.TransformerEncoderLayer` with PyTorch's cross entropy;
- the bare matrix products of the same step, forward and backward, and nothing else: the limit.

Rows in bfloat16 are for CPUs whose 16-bit units pay, as `slm` itself asks; elsewhere they are named as not measured.
Where other work shares the machine, `--processor-seconds` with `--threads 1` counts only this process's.

Peak memory is the growth of a fresh process's resident memory over what it had after its imports.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import Seconds, bar, interleave, machine, not_measured, ratio
from torch import Tensor, nn

from slm.hardware import choose_dtype

L, H, D, T = 6, 6, 384, 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def precision(dtype: str) -> AbstractContextManager[object]:
    return nullcontext() if dtype == "float32" else torch.autocast("cpu", DTYPES[dtype])


class EncoderGPT(nn.Module):
    """GPT-2's shape out of `nn.TransformerEncoderLayer`."""

    def __init__(self, V: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(V, D), nn.Embedding(T, D)
        layer = nn.TransformerEncoderLayer(
            D,
            H,
            4 * D,
            dropout=0.0,
            activation=nn.GELU("tanh"),
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            layer, L, norm=nn.LayerNorm(D), enable_nested_tensor=False
        )
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(T))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.blocks(
            self.token(x) + self.position.weight, mask=self.mask, is_causal=True
        )  # (B, T, D)
        return F.cross_entropy(
            F.linear(h, self.token.weight).flatten(0, 1), y.flatten()
        )


class PlainBlock(nn.Module):
    """A pre-norm block as most GPTs in PyTorch have it."""

    mask: Tensor

    def __init__(self, written_out: bool, gelu: str) -> None:
        super().__init__()
        self.written_out, self.gelu = written_out, gelu
        self.norm_1, self.norm_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.register_buffer("mask", torch.full((T, T), -torch.inf).triu(1))

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.written_out:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)
        return (scores + self.mask.to(scores.dtype)).softmax(-1).to(v.dtype) @ v

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm_1(x)).split(D, dim=-1)
        q, k, v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in parts)
        heads = self.attention(q, k, v).transpose(1, 2).flatten(2)  # (B, T, D)
        x = x + self.out(heads)
        up = F.gelu(self.up(self.norm_2(x)), approximate=self.gelu)
        return x + self.down(up)


class PlainGPT(nn.Module):
    """A GPT of the usual kind: all logits for the loss, and the exact GELU unless another is asked for."""

    def __init__(self, V: int, written_out: bool, gelu: str = "none") -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.Sequential(*(PlainBlock(written_out, gelu) for _ in range(L)))
        self.norm = nn.LayerNorm(D)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.norm(self.blocks(self.token(x) + self.position.weight))  # (B, T, D)
        logits = F.linear(h, self.token.weight)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())


def usual(V: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    model = PlainGPT(V, written_out=False)
    return model, model.loss


def written(V: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    model = PlainGPT(V, written_out=True)
    return model, model.loss


def alike(V: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    model = PlainGPT(V, written_out=False, gelu="tanh")
    return model, model.loss


def ours(V: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    from slm import GPT, GPTConfig

    model = GPT(GPTConfig(V, T, L, H, D, 4 * D))
    return model, model.loss


def plain(V: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    model, _ = ours(V)
    return model, lambda x, y: F.cross_entropy(
        model(x).flatten(0, 1).float(), y.flatten()
    )


def theirs(V: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=V,
        n_positions=T,
        n_embd=D,
        n_layer=L,
        n_head=H,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(shape)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits = model(x).logits  # (B, T, V); y is x shifted already
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())

    return model, loss


def encoder(V: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    model = EncoderGPT(V)
    return model, model.loss


MODELS = {
    "slm": ours,
    "slm, plain loss": plain,
    "plain GPT": usual,
    "plain GPT, written out": written,
    "plain GPT, GPT-2's GELU": alike,
    "transformers": theirs,
    "torch.nn": encoder,
}


# vocabulary, batch, dtype, and how many times as fast as the fastest rival at least
ROWS = (
    (1024, 8, "float32", 1.0),
    (50257, 4, "float32", 1.0),
    (1024, 8, "bfloat16", 1.15),
    (50257, 4, "bfloat16", 1.5),
)


def stepper(name: str, V: int, B: int, dtype: str, steps: int) -> Callable[[], None]:
    """A function that takes `steps` training steps."""
    torch.manual_seed(0)
    model, loss_of = MODELS[name](V)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    text = torch.randint(V, (B, T + 1))

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            with precision(dtype):
                loss = loss_of(text[:, :-1], text[:, 1:])
            loss.backward()
            optimizer.step()

    return run


def bare_products(V: int, B: int, dtype: str, steps: int) -> Callable[[], None]:
    """The linear layers' and the output's matrix products of a step, forward and backward, in `dtype`."""
    N = B * T
    shapes = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)]
    matrices = [
        [
            torch.randn(*size, dtype=DTYPES[dtype])
            for size in ((N, fan_in), (fan_in, fan_out), (N, fan_out))
        ]
        for fan_in, fan_out in [*(shapes * L), (D, V)]
    ]

    def run() -> None:
        for _ in range(steps):
            for x, w, dy in matrices:
                x @ w  # forward
                dy @ w.T  # gradient of the input
                x.T @ dy  # gradient of the weight

    return run


def current_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def highest_mib() -> float:
    """Highest resident memory of this process so far (`ru_maxrss` would count the parent's before the exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return (
        next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    )


def peak_growth(name: str, V: int, B: int, dtype: str) -> float:
    """MiB by which two steps grow the resident memory of this process, at their peak."""
    MODELS[name](64)  # its imports
    before = current_mib()
    stepper(name, V, B, dtype, steps=2)()
    return highest_mib() - before


def peaks(
    names: list[str], V: int, B: int, dtype: str, threads: int
) -> dict[str, float]:
    """`peak_growth` of each model, in a process of its own."""
    found = {}
    for name in names:
        task = json.dumps([name, V, B, dtype])
        command = [
            sys.executable,
            __file__,
            "--threads",
            str(threads),
            "--layers",
            str(L),
            "--peak",
            task,
        ]
        found[name] = float(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
    return found


def table(seconds: Seconds, tokens: int, memory: dict[str, float]) -> None:
    print("| contender | tokens/s | time against slm | peak MiB |\n|---|---|---|---|")
    for name, times in seconds.items():
        peak = f"{memory[name]:,.0f}" if name in memory else ""
        against = ratio(seconds, name, "slm")
        print(
            f"| {name} | {tokens / statistics.median(times):,.0f} | {against:.2f} | {peak} |"
        )


def main() -> None:
    global L
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--steps", type=int, default=3, help="training steps in each timing"
    )
    parser.add_argument("--layers", type=int, default=L)
    parser.add_argument("--only", choices=DTYPES, help="one dtype instead of both")
    parser.add_argument("--processor-seconds", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    L = arguments.layers
    if arguments.peak:
        print(peak_growth(*json.loads(arguments.peak)))
        return
    print(machine())
    clock = "processor seconds" if arguments.processor_seconds else "wall-clock seconds"
    print(f"{clock}, medians of {arguments.rounds} rounds in turns")
    fast = choose_dtype(torch.device("cpu"))
    verdicts = []
    for V, B, dtype, wanted in ROWS:
        if arguments.only not in (None, dtype):
            continue
        if dtype != "float32" and fast != DTYPES[dtype]:
            why = f"products in {dtype} do not pay on this CPU"
            verdicts.append(not_measured(f"{dtype}, V {V:,}", why))
            continue
        names = [name for name in MODELS if V > 1024 or name != "slm, plain loss"]
        contenders = {
            name: stepper(name, V, B, dtype, arguments.steps) for name in names
        }
        contenders["bare products"] = bare_products(V, B, dtype, arguments.steps)
        seconds = interleave(
            contenders, arguments.rounds, of_processor=arguments.processor_seconds
        )
        del contenders
        memory = peaks(names, V, B, dtype, arguments.threads)
        print(f"\n{dtype}, V = {V:,}, B = {B}, T = {T}\n")
        table(seconds, arguments.steps * B * T, memory)
        verdicts += judge(seconds, memory, f"{dtype}, V {V:,}", wanted)
    print("\n" + "\n".join(verdicts))


def judge(
    seconds: Seconds, memory: dict[str, float], row: str, wanted: float
) -> list[str]:
    """The bars of one row: speed against the fastest rival, and memory where logits are large."""
    rivals = [name for name in memory if not name.startswith("slm")]
    fastest = min(rivals, key=lambda name: ratio(seconds, name, "slm"))
    speed = ratio(seconds, fastest, "slm")
    lines = [bar(f"{row}: speed against the fastest rival ({fastest})", speed, wanted)]
    if "slm, plain loss" not in memory:
        return lines
    share = memory["slm"] / min(memory[name] for name in rivals)
    text = f"{row}: peak memory against the smallest rival"
    lines.append(bar(text, share, 0.7, at_most=True))
    share = memory["slm"] / memory["slm, plain loss"]
    text = f"{row}: peak memory against the plain loss"
    lines.append(bar(text, share, 0.7, at_most=True))
    speed = ratio(seconds, "slm, plain loss", "slm")
    return [*lines, bar("    its speed against the plain loss", speed, 1.0)]


if __name__ == "__main__":
    main()
