"""A training step against two GPTs made of other people's parts.

    python benchmarks/training_step.py [--threads 2] [--rounds 9] [--steps 3] [--only float32]

Contenders, each with the same shape (6 layers, 6 heads, width 384, 256 tokens), dtype, data and fused AdamW:

- this package's `GPT.loss`, and with the large vocabulary also its logits with PyTorch's cross entropy ("plain loss");
- `transformers.GPT2LMHeadModel` with its loss, on the faster of its attention kernels (sdpa);
- a GPT of `torch.nn.TransformerEncoderLayer` with PyTorch's cross entropy;
- the bare matrix products of the same step, forward and backward, and nothing else: the limit.

Peak memory is the growth of a fresh process's resident memory over what it had after its imports.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import Seconds, bar, interleave, machine, ratio
from torch import Tensor, nn

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
    "transformers": theirs,
    "torch.nn": encoder,
}


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
    """MiB by which four steps grow the resident memory of this process, at their peak."""
    MODELS[name](64)  # its imports
    before = current_mib()
    stepper(name, V, B, dtype, steps=4)()
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
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    L = arguments.layers
    if arguments.peak:
        print(peak_growth(*json.loads(arguments.peak)))
        return
    print(machine())
    verdicts = []
    for V, B, dtype, wanted in (
        (1024, 8, "float32", 1.05),
        (1024, 8, "bfloat16", 1.15),
        (50257, 4, "bfloat16", 1.2),
    ):
        if arguments.only not in (None, dtype):
            continue
        names = [name for name in MODELS if V > 1024 or name != "slm, plain loss"]
        contenders = {
            name: stepper(name, V, B, dtype, arguments.steps) for name in names
        }
        contenders["bare products"] = bare_products(V, B, dtype, arguments.steps)
        seconds = interleave(contenders, arguments.rounds)
        del contenders
        memory = peaks(names, V, B, dtype, arguments.threads)
        print(f"\n{dtype}, V = {V:,}, B = {B}, T = {T}\n")
        table(seconds, arguments.steps * B * T, memory)
        rivals = [name for name in names if not name.startswith("slm")]
        fastest = min(ratio(seconds, name, "slm") for name in rivals)
        verdicts.append(
            bar(f"{dtype}, V {V:,}: speed against the faster rival", fastest, wanted)
        )
        if V > 1024:
            share = memory["slm"] / min(memory[name] for name in rivals)
            verdicts.append(
                bar(
                    f"{dtype}, V {V:,}: peak memory against the smaller rival",
                    share,
                    0.7,
                    at_most=True,
                )
            )
            share = memory["slm"] / memory["slm, plain loss"]
            verdicts.append(
                bar(
                    f"{dtype}, V {V:,}: peak memory against the plain loss",
                    share,
                    0.7,
                    at_most=True,
                )
            )
            verdicts.append(
                bar(
                    "    its speed against the plain loss",
                    ratio(seconds, "slm, plain loss", "slm"),
                    1.0,
                )
            )
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
