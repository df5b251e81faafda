"""Seconds of 200 training steps, predicted before they are run, against the seconds that they take.

    python benchmarks/cost_prediction.py [--threads 1] [--rounds 3] [--steps 200] [--calibration 30]

The method of the chapter on cost: a few steps of a model of two layers and of one of four give the seconds of a layer and of all
else; from these follow the seconds of a deeper model, before it exists. Three widths and depths, float32, AdamW. All
times are processor time, so that other programs on the machine count as little as possible; a size's error is the
median over the rounds, each of which calibrates anew.
"""

import argparse
import statistics
import time

import torch
from timing import bar, machine

from course.figures.cost import median_seconds, training_step
from slm import GPTConfig
from slm.model.config import count_flops_per_token, count_parameters

SIZES = {"narrow": (8, 48), "middle": (6, 96), "wide": (5, 192)}  # layers, width


def shape(n_layers: int, d_model: int) -> GPTConfig:
    return GPTConfig(512, 64, n_layers, n_heads=2, d_model=d_model, d_ff=4 * d_model)


def predict(config: GPTConfig, steps: int, calibration: int) -> float:
    """Seconds of so many steps, from short runs of two shallower models that take turns."""
    two, four = median_seconds(
        [training_step(shape(n, config.d_model)) for n in (2, 4)], calibration
    )
    return steps * (two + (config.n_layers - 2) * (four - two) / 2)


def measure(config: GPTConfig, steps: int) -> float:
    """Processor seconds of so many steps; the first one, which allocates, is left out."""
    step = training_step(config)
    step()
    began = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--calibration",
        type=int,
        default=30,
        help="steps of each of the two shallower models",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine(), end="\n\n")
    print(
        "| model | parameters | MFLOPs a token | predicted s | measured s | error | errors of the rounds |"
    )
    print("|---|---|---|---|---|---|---|")
    verdicts = []
    for name, (n_layers, d_model) in SIZES.items():
        config = shape(n_layers, d_model)
        pairs = [
            (
                predict(config, arguments.steps, arguments.calibration),
                measure(config, arguments.steps),
            )
            for _ in range(arguments.rounds)
        ]
        errors = [predicted / measured - 1 for predicted, measured in pairs]
        error = statistics.median(errors)
        predicted, measured = (
            statistics.median(times) for times in zip(*pairs, strict=True)
        )
        flops = count_flops_per_token(config) / 1e6
        print(
            f"| {name}: {n_layers} layers of {d_model} | {count_parameters(config):,} | {flops:.2f} | {predicted:.2f} "
            f"| {measured:.2f} | {error:+.1%} | {', '.join(f'{each:+.1%}' for each in errors)} |"
        )
        verdicts.append(
            bar(f"{name}: size of the error", abs(error), 0.15, at_most=True)
        )
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
