"""What the trainer costs on top of a bare loop, without evaluation and checkpoints.

    python benchmarks/trainer_overhead.py [--threads 1] [--rounds 9] [--steps 30] [--compile]

Both train the model of `configs/stories_cpu.yaml` on the same batches in the same precision with the same optimizers.
The bare loop is the least that makes the same weights: batch, loss, backward, clipping, step. The trainer adds weights
by targets, the schedule, its look at losses every ten steps, and the metrics. `--compile` adds a bare loop whose loss
goes through `torch.compile`, and says how long compiling took (it needs a C++ compiler). Times are CPU seconds of the
process, so that other programs on the machine count little.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import torch
from timing import bar, interleave, machine, ratio
from torch import Tensor, nn

from slm.data.dataset import create_dataloader
from slm.data.tokenizer import get_tokenizer
from slm.hardware import choose_dtype
from slm.model.gpt import GPT
from slm.training.config import load_config
from slm.training.optim import learning_rate, make_optimizers
from slm.training.trainer import Trainer

Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    steps = arguments.steps
    config = load_config(
        "configs/stories_cpu.yaml",
        [f"training.max_steps={steps}", "training.warmup_steps=1"],
    )
    t, tokenizer = config.training, get_tokenizer(config.data.tokenizer)
    loader = create_dataloader(
        config.data.dataset,
        batch_size=t.batch_size,
        context_length=config.model.context_length,
        tokenizer=tokenizer,
        packing=config.data.packing,
        cache_dir=config.data.cache_dir,
    )
    device = torch.device("cpu")
    dtype, models = choose_dtype(device, t.dtype), {}

    def model(name: str) -> GPT:
        torch.manual_seed(0)
        models[name] = GPT(config.model)
        return models[name]

    def loop(
        name: str, wrap: Callable[[Loss], Loss] = lambda loss: loss
    ) -> Callable[[], None]:
        def run() -> None:
            own = model(name)
            optimizers, loss_of = make_optimizers(own, t), wrap(own.loss)
            for step in range(steps):
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(step, t)
                x, y = loader.batch(step)
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    loss = loss_of(x, y)
                loss.backward()
                nn.utils.clip_grad_norm_(own.parameters(), t.grad_clip)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()

        return run

    ready = [
        Trainer(model("trainer"), loader, None, config, device, verbose=False)
        for _ in range(arguments.rounds + 1)
    ]
    contenders = {
        "bare loop": loop("bare loop"),
        "trainer": lambda: ready.pop(0).train(),
    }
    last = ready[-1].model
    if arguments.compile:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = (
            tempfile.mkdtemp()
        )  # time the compiling, not the finding of an earlier one
        started = time.perf_counter()
        contenders["bare loop, compiled"] = loop("compiled", torch.compile)
        contenders["bare loop, compiled"]()
        print(
            f"compiling and the first {steps} steps took {time.perf_counter() - started:.0f} s"
        )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}

    def timed(name: str) -> Callable[[], None]:
        def run() -> None:
            started = time.process_time()
            contenders[name]()
            seconds[name].append(time.process_time() - started)

        return run

    interleave({name: timed(name) for name in contenders}, arguments.rounds)
    seconds = {
        name: times[1:] for name, times in seconds.items()
    }  # the first round warms up
    print(
        "\n| contender | CPU milliseconds per step (fastest round) | CPU time against the bare loop |\n|---|---|---|"
    )
    for name, times in seconds.items():
        print(
            f"| {name} | {1e3 * min(times) / steps:.1f} | {ratio(seconds, name, 'bare loop'):.3f} |"
        )
    pairs = zip(last.parameters(), models["bare loop"].parameters(), strict=True)
    print(
        f"\nlargest difference between the weights: {max((a - b).abs().max().item() for a, b in pairs):.0e}"
    )
    overhead = 100 * (ratio(seconds, "trainer", "bare loop") - 1)
    print(bar("per cent that the trainer adds", overhead, 3, at_most=True))


if __name__ == "__main__":
    main()
