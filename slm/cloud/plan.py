"""Which model for which money: the config that a budget is best spent on.

    print(plan(5.0).report())

Exported from chapters/18_cost.py; edit it there.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from slm.cloud.cost import (
    Estimate,
    cheapest_batch,
    estimate,
    max_steps_that_fit,
    tokens_per_step,
)
from slm.errors import SlmError
from slm.files import user_path
from slm.gpus import MODAL, Prices
from slm.model.config import GPTConfig, count_parameters
from slm.training.config import ModalConfig, RunConfig, make_config

# What a dollar buys

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
ERRORS = (0.03, 0.02, 0.02)  # standard errors of E, ALPHA and BETA
MIDDLE = (1e9, 2e10)  # parameters and tokens in the middle of the fitted runs


def predicted_loss(parameters: float, tokens: float) -> tuple[float, float]:
    """The loss after so many tokens, each seen once, by a law for web text.

    Besiroglu et al. 2024 fitted it to runs of Hoffmann et al. 2022. On another text,
    or in other tokens, only the order of two runs may carry over.

    Returns:
        Nats per token, and two standard errors of them.
    """
    size, text = A / parameters**ALPHA, B / tokens**BETA
    turned = size * ERRORS[1] * math.log(MIDDLE[0] / parameters)
    bent = text * ERRORS[2] * math.log(MIDDLE[1] / tokens)
    return E + size + text, 2 * math.hypot(ERRORS[0], turned, bent)


# A budget becomes a config


class Shape(NamedTuple):
    """A model to choose, and how it is trained."""

    n_layers: int
    d_model: int
    rows: int  # in a step, of CONTEXT tokens
    learning_rate: float


SHAPES = (
    Shape(4, 256, 32, 1e-3),
    Shape(6, 384, 32, 1e-3),
    Shape(8, 512, 32, 8e-4),
    Shape(10, 640, 32, 7e-4),
    Shape(12, 768, 32, 6e-4),
    Shape(16, 896, 32, 5e-4),
    Shape(24, 1024, 64, 3e-4),
    Shape(36, 1280, 128, 2.5e-4),
    Shape(48, 1600, 256, 2e-4),
    Shape(32, 2560, 256, 1.6e-4),
)
VOCABULARY, CONTEXT = 50_257, 1024  # of GPT-2
CORPORA = {  # tokens in one pass, the smallest first
    "roneneldan/TinyStories": 0.47e9,
    "HuggingFaceFW/fineweb-edu:sample-10BT": 1e10,
}
PASSES = 4  # over a corpus at most
LEAST_STEPS = 200  # fewer are no training
DAY = 86_400  # seconds, the longest that an attempt may take
MOST_DOLLARS = 100_000


def _draft(shape: Shape, gpu: str, dollars: float) -> RunConfig:
    """The shortest run of a shape on that machine, with micro-batches of one row."""
    count = ModalConfig(gpu=gpu).gpu_count
    layers, width, rows, rate = shape
    model = GPTConfig(VOCABULARY, CONTEXT, layers, width // 64, width, 4 * width)
    parameters = count_parameters(model)
    memory = 4096 * count + 12 * parameters // 2**20  # MiB; a checkpoint is on its way
    sections = {
        "model": dataclasses.asdict(model),
        "training": {
            "batch_size": 1,
            "gradient_accumulation_steps": rows // count,
            "learning_rate": rate,
            "min_learning_rate": rate / 10,
            "warmup_steps": LEAST_STEPS // 20,
            "max_steps": LEAST_STEPS,
            "eval_every": 500,
            "checkpoint_every": 500,
        },
        "data": {"dataset": next(iter(CORPORA)), "num_workers": 2},
        "modal": {
            "gpu": gpu,
            "timeout": DAY,
            "max_dollars": max(0.01, int(100 * dollars + 1e-6) / 100),
            "cpu": 2.0 * count,
            "memory_mib": 4096 * max(2, math.ceil(memory / 4096)),
        },
    }
    return make_config(sections, f"gpt_{parameters / 1e6:.0f}m")


def _drafts(dollars: float, gpu: str | None, prices: Prices) -> Iterator[RunConfig]:
    """All shapes on all machines that so much money might need."""
    for kind in [row.name for row in prices.gpus] if gpu is None else [gpu]:
        row = prices.find(kind.partition(":")[0])
        day = DAY * row.dollars_per_second
        needed = [n for n in (2, 4, 8) if n <= row.limit and dollars > n / 2 * day]
        several = [] if ":" in kind else [f"{kind}:{n}" for n in needed]
        for machine in [kind, *several]:
            for shape in SHAPES:
                config = cheapest_batch(_draft(shape, machine, dollars), prices)
                if estimate(config, prices).fits_memory:
                    yield config


@dataclass(frozen=True)
class Plan:
    """The run that a budget buys, and what is expected of it.

    Args:
        dollars: The budget.
        config: The run.
        estimate: Its hours and dollars.
        tokens: Seen in all, repeated ones included.
        loss: Predicted, in nats per token of web text.
        error: Two standard errors of it.
    """

    dollars: float
    config: RunConfig
    estimate: Estimate
    tokens: int
    loss: float
    error: float

    def report(self) -> str:
        """What is proposed and why, in lines of at most 88 characters."""
        model, training, found = self.config.model, self.config.training, self.estimate
        parameters = count_parameters(model)
        (fast, slow), (low, high) = found.hours, found.dollars
        corpus, step = self.config.data.dataset, tokens_per_step(self.config)
        spent = f"{low:.2f}-{high:.2f}, of {self.dollars:.2f}"
        if high < 0.9 * self.dollars:
            spent += "; no attempt may be longer, no text seen more often"
        each, times = training.batch_size, training.gradient_accumulation_steps
        lines = {
            "model": f"{model.n_layers} layers of {model.d_model}, heads of 64; "
            f"{parameters:,} parameters",
            "tokens": f"{self.tokens:,}, {self.tokens / parameters:.1f} for each "
            "parameter",
            "text": f"{corpus}, {self.tokens / CORPORA[corpus]:.2g} passes",
            "steps": f"{training.max_steps:,} of {step:,} tokens",
            "batch": f"{times} x {each} rows of {model.context_length:,} tokens a GPU",
            "GPU": f"{found.name}, its speed {found.evidence}",
            "hours": f"{fast:.2f}-{slow:.2f}",
            "dollars": spent,
            "loss": f"{self.loss:.2f} ± {self.error:.2f} nats per token, if this were "
            "web text",
        }
        return "\n".join(f"{name:<9}{what}" for name, what in lines.items())

    def write(self, path: str | Path) -> None:
        """Write the config as YAML.

        Raises:
            SlmError: There is such a file already.
        """
        text = f"# What `slm plan {self.dollars:g}` proposes.\n{self.config.to_yaml()}"
        try:
            with open(user_path(path), "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise SlmError(
                f"{path} is there already, and is not overwritten."
            ) from None


def _spend(config: RunConfig, dollars: float, prices: Prices) -> Plan | None:
    """A draft with all steps that its budget holds; None if these are too few."""
    step = tokens_per_step(config)
    most = int(PASSES * max(CORPORA.values()) / step)
    steps = min(max_steps_that_fit(config, prices), most)
    if steps < LEAST_STEPS:
        return None
    tokens = steps * step
    corpus = next(name for name, n in CORPORA.items() if tokens <= PASSES * n)
    warmup = min(500, steps // 20)
    training = dataclasses.replace(
        config.training, max_steps=steps, warmup_steps=warmup
    )
    data = dataclasses.replace(config.data, dataset=corpus, val_fraction=0.01)
    config = dataclasses.replace(config, training=training, data=data)
    loss = predicted_loss(count_parameters(config.model), tokens)
    return Plan(dollars, config, estimate(config, prices), tokens, *loss)


def plan(dollars: float, gpu: str | None = None, prices: Prices = MODAL) -> Plan:
    """The run with the lowest predicted loss for so many dollars.

    Args:
        dollars: To be spent at most, at the slow end of the estimate.
        gpu: A kind of GPU, or several as in "H100:8"; None for the best of all.
        prices: The price table.

    Raises:
        SlmError: The budget is no such number or too small for any run, or there is no
            such GPU.
    """
    if not 0 < dollars <= MOST_DOLLARS:  # also false for nan
        allowed = f"allowed is a budget above 0 and up to {MOST_DOLLARS:,}"
        raise SlmError(f"{dollars:.10g} dollars cannot be planned for; {allowed}.")
    drafts = list(_drafts(dollars, gpu, prices))
    plans = [found for draft in drafts if (found := _spend(draft, dollars, prices))]
    if plans:
        return min(plans, key=lambda found: (found.loss, found.estimate.dollars[1]))
    if not drafts:
        raise SlmError(f"No model is small enough for {gpu or 'these GPUs'}.")
    costs = (estimate(draft, prices) for draft in drafts)
    least = min(costs, key=lambda row: row.dollars[1])
    cents = math.ceil(100 * least.dollars[1])
    few = f"{LEAST_STEPS} steps of the smallest model cost up to ${cents / 100:.2f}"
    raise SlmError(f"${dollars:g} is too little: {few} on {least.name}.")
