"""What the cost chapter predicts, held against what it was not fitted to.

    python benchmarks/cost_prediction.py [--threads 1] [--steps 1500] [--tiny]

Cards: the time of a micro-batch is fitted without the steps that were timed on one kind of card, and predicts these. If
steps of this package are left, they alone are fitted; else everybody's are. The rows are those of `slm.gpus.STEPS` that
were compiled; nothing is measured here.

Ladder: five sizes of a model and a sixth, larger one are trained on the stories, taking turns step by step, so that a slow
moment of the machine hits all of them. From the five follow the sixth's seconds (a fixed part for a step, and one that grows
with the FLOPs) and its loss (a power law above the floor, which the grammar gives). Seconds are processor time of this
process, so that other programs on the machine count as little as possible; they still share its caches.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from timing import bar, machine

from course.figures.cost import fit_power_law
from slm import GPT, GPTConfig, Trainer, create_dataloader, get_tokenizer
from slm.cloud.cost import MEASURED, SPREAD, fit_step, work
from slm.data.floor import reference_lines
from slm.gpus import STEPS, TrainingStep
from slm.model.config import count_flops_per_token, count_parameters

WIDTHS = (16, 24, 32, 40, 48, 64)  # the last one is predicted from the others
TRAINING = {
    "batch_size": 8,
    "optimizer": "muon",
    "learning_rate": 2e-2,
    "eval_batches": 40,
    "use_amp": False,
}
SECONDS, LOSS = 0.15, 0.02  # relative; nats per token


def chip(step: TrainingStep) -> str:
    """A100-40GB and A100-80GB are one."""
    return step.gpu.partition("-")[0]


def without(card: str, steps: Sequence[TrainingStep]) -> tuple[float, float]:
    """Seconds of a layer and share of the products' speed, fitted to the steps of all other cards."""
    others = [step for step in steps if step.compiled and chip(step) != card]
    ours = [step for step in others if step.code == "slm"]
    return fit_step(ours or [step._replace(code="slm") for step in others])


def cards() -> list[str]:
    """A table of the held-out steps, and a verdict for each card."""
    print("| held out | code | rows | predicted ms | measured ms | error |")
    print("|---|---|---|---|---|---|")
    compiled = [step for step in STEPS if step.compiled]
    verdicts = []
    for card in dict.fromkeys(map(chip, compiled)):
        layer, share = without(card, compiled)
        errors = []
        for step in (step for step in compiled if chip(step) == card):
            predicted = 1000 * (MEASURED.n_layers * layer + work(step) / share)
            errors.append(predicted / step.milliseconds - 1)
            print(
                f"| {step.gpu} | {step.code} | {step.rows} | {predicted:.1f} | {step.milliseconds:.1f} | {errors[-1]:+.0%} |"
            )
        worst = max(map(abs, errors))
        said = f"{card}: largest error without its own steps"
        verdicts.append(bar(said, worst, SPREAD["published"], at_most=True))
    return verdicts


def shape(d_model: int) -> GPTConfig:
    return GPTConfig(
        1024, 128, n_layers=2, n_heads=2, d_model=d_model, d_ff=4 * d_model
    )


def train(
    models: Sequence[GPTConfig], steps: int, documents: int | None
) -> tuple[list[float], list[float]]:
    """Seconds and validation loss of each model after so many steps; they take turns."""
    train_text, held_out = (
        create_dataloader(
            "stories",
            split=split,
            tokenizer="stories",
            packing="documents",
            batch_size=8,
            context_length=128,
            max_documents=documents,
        )
        for split in ("train", "validation")
    )
    trainers = []
    for model in models:
        torch.manual_seed(0)
        training = {
            "training": {**TRAINING, "max_steps": steps, "warmup_steps": steps // 20}
        }
        trainer = Trainer(
            GPT(model), train_text, held_out, training, device="cpu", verbose=False
        )
        trainer.model.train()
        trainers.append((trainer, (train_text.batch(step) for step in range(steps))))
    seconds = [0.0] * len(models)
    for _ in range(steps):
        for n, (trainer, batches) in enumerate(trainers):
            began = time.process_time()
            trainer.train_step(batches)
            seconds[n] += time.process_time() - began
    return seconds, [trainer.validate() for trainer, _ in trainers]


def ladder(steps: int, documents: int | None) -> list[str]:
    """A table of the six sizes, and a verdict on the sixth's seconds and one on its loss."""
    models = [shape(width) for width in WIDTHS]
    seconds, losses = train(models, steps, documents)
    floor = reference_lines(get_tokenizer("stories")).floor
    flops = [count_flops_per_token(model) for model in models]
    sizes = [count_parameters(model) for model in models]
    line = statistics.linear_regression(flops[:-1], seconds[:-1])
    law = fit_power_law(sizes[:-1], losses[:-1], floor)
    print(
        "\n| width | parameters | MFLOPs a token | seconds | of the line | loss | of the law |"
    )
    print("|---|---|---|---|---|---|---|")
    for width, size, each, took, loss in zip(
        WIDTHS, sizes, flops, seconds, losses, strict=True
    ):
        told = line.intercept + line.slope * each
        print(
            f"| {width} | {size:,} | {each / 1e6:.2f} | {took:.1f} | {told:.1f} | {loss:.4f} | {law(size):.4f} |"
        )
    print(
        f"\n{steps:,} steps; floor {floor:.4f}, L(N) = floor + {law.a:.3g} N^-{law.b:.2f}; {sum(seconds):.0f} seconds in all"
    )
    predicted = line.intercept + line.slope * flops[-1]
    return [
        bar(
            "the sixth's seconds, error",
            abs(predicted / seconds[-1] - 1),
            SECONDS,
            True,
        ),
        bar(
            "the sixth's loss, error in nats",
            abs(law(sizes[-1]) - losses[-1]),
            LOSS,
            True,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500, help="of each size")
    parser.add_argument(
        "--tiny", action="store_true", help="20 steps on 100 stories: does it run?"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine(), end="\n\n")
    verdicts = cards()
    size = (20, 100) if arguments.tiny else (arguments.steps, None)
    verdicts += ladder(*size)
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
