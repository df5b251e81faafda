"""Cost.

What a training run costs, known before it starts. You count operations by hand and by machine, measure what your
own computer does with them, turn both into hours and dollars on every GPU that Modal rents, and into the loss that
they buy, and export `slm.cost`. At the end the package gets its door: `slm train`, `slm generate`, `slm cost`.

Exported from chapters/08_cost.py; edit it there.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from slm.config import GPU_LIMITS, RunConfig
from slm.gpt_config import GPTConfig


def count_forward_flops(config: GPTConfig) -> dict[str, int]:
    """FLOPs of one token's forward pass at full context, by part.

    Counts the matrix products, two FLOPs per multiply-add, and attention over all `context_length` keys as if nothing
    were masked (the convention of Chowdhery et al. 2022, appendix B). Embedding look-ups, norms, GELU and softmax are
    not counted.
    """
    L, D, F, T, V = config.n_layers, config.d_model, config.d_ff, config.context_length, config.vocab_size
    return {
        "queries, keys, values": L * 6 * D * D,
        "scores and weighted sums": L * 4 * T * D,
        "attention output": L * 2 * D * D,
        "feed-forward": L * 4 * D * F,
        "logits": 2 * D * V,
    }


def count_flops_per_token(config: GPTConfig, training: bool = True) -> int:
    """FLOPs per token: the forward pass, or with `training` three times that.

    The backward pass makes two products for each of the forward pass: one for the gradient of the input and one for
    that of the weight.
    """
    return (3 if training else 1) * sum(count_forward_flops(config).values())


class Memory(BaseModel):
    """Bytes on one device during a training step, by what they are for."""

    model_config = ConfigDict(frozen=True)

    weights: int
    optimizer: int
    gradients: int
    earlier_gradients: int
    activations: int
    loss: int

    @property
    def peak(self) -> int:
        """The larger of two moments: all activations alive (after the loss), or all gradients (after backward)."""
        after_loss = self.earlier_gradients + self.activations + self.loss
        return self.weights + self.optimizer + max(after_loss, self.gradients)


def count_parameters(config: GPTConfig) -> int:
    """Numbers that training finds; the output matrix is the token embedding and counts once."""
    L, D, F = config.n_layers, config.d_model, config.d_ff
    layer = 4 * D * D + 2 * D * F + 9 * D + F  # matrices; biases and the two norms
    return L * layer + (config.vocab_size + config.context_length) * D + 2 * D


def count_memory(
    config: GPTConfig,
    batch_size: int,
    dtype: str = "bfloat16",
    device: str = "cuda",
    accumulate: bool = False,
    optimizer: str = "adamw",
) -> Memory:
    """What a training step holds in memory, counted from the structure of `slm.gpt.GPT`.

    Args:
        config: The model.
        batch_size: Rows of `context_length` tokens in one forward pass (the micro-batch).
        dtype: "float32", or "bfloat16"/"float16" for autocast with float32 weights.
        device: "cuda", or "cpu", where bfloat16 attention keeps its `(T, T)` weights and the loss takes smaller chunks.
        accumulate: Gradients of earlier micro-batches are alive while activations are.
        optimizer: "adamw", two averages per parameter, or "muon", one for the matrices of the blocks.

    Not counted: the device's own context, kernels' workspaces, fragmentation. Plan with a tenth of the memory for them.
    """
    L, H, D, F = config.n_layers, config.n_heads, config.d_model, config.d_ff
    T, V = config.context_length, config.vocab_size
    half = dtype != "float32"
    b, tokens = 2 if half else 4, batch_size * T
    layer_weights = L * (4 * D * D + 2 * D * F)
    parameters = count_parameters(config)
    per_layer = 8 * D + 6 * b * D + 2 * b * F + 4 * H + 16  # bytes per token; at the end, sums of attention and norms
    if half and device == "cpu":
        per_layer += b * H * T
    if config.dropout:
        per_layer += 2 * D
    block, copies = (2**25, 2**22) if device == "cpu" else (2**29, 2**28)  # bytes of logits, and of 32-bit copies
    logits = b * V * -(-tokens // max(1, -(-tokens * V * b // block)))  # of so many rows that they fit into a block
    output = V * D  # the output matrix, of which the loss makes the gradient
    in_the_loss = 8 * tokens * D + (4 + b * half) * output + logits + min(2 * copies, 8 * tokens * V)
    behind_it = 12 * tokens * D + 8 * output  # the gradients, and once more multiplied by what comes from above
    gradients = 4 * parameters
    return Memory(
        weights=4 * parameters + 2 * layer_weights * half,
        optimizer=8 * parameters - (4 * layer_weights if optimizer == "muon" else 0),
        gradients=gradients + 4 * output,  # for a moment the embedding's gradient exists twice: as input and as output
        earlier_gradients=gradients if accumulate else 0,
        activations=tokens * (L * per_layer + (4 + bool(config.dropout)) * D),
        loss=max(in_the_loss, behind_it),
    )


class GPU(BaseModel):
    """One GPU: what it costs, what it can do, and what training code is assumed to reach on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dollars_per_second: PositiveFloat
    peak_tflops: PositiveFloat = Field(description="dense, in bfloat16, or in float16 where there is no bfloat16")
    float32_tflops: PositiveFloat = Field(description="outside the matrix units, which is where float32 is computed")
    memory_gb: PositiveFloat
    mfu: tuple[PositiveFloat, PositiveFloat] = Field(
        description="lowest and highest share of the peak to plan with, an assumption"
    )
    bfloat16: bool = True


class Prices(BaseModel):
    """What a provider charges, on one day."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    date: str
    dollars_per_core_second: float = Field(ge=0)
    dollars_per_gib_second: float = Field(ge=0)
    free_dollars_per_month: float = Field(ge=0)
    gpus: tuple[GPU, ...] = Field(min_length=1)

    def find(self, name: str) -> GPU:
        """The GPU of that name as Modal spells it: "A100" has 40 GB, and H100! and B200+ cost what H100 and B200 do."""
        wanted = {"A100": "A100-40GB"}.get(name.upper(), name.upper()).rstrip("!+")
        for gpu in self.gpus:
            if gpu.name == wanted:
                return gpu
        raise ValueError(
            f"no price for GPU {name!r}; the table of {self.date} has {', '.join(gpu.name for gpu in self.gpus)}."
        )


def _modal(name: str, dollars: float, tflops: tuple[float, float], gb: float, mfu: tuple[float, float]) -> GPU:
    return GPU(
        name=name,
        dollars_per_second=dollars,
        peak_tflops=tflops[0],
        float32_tflops=tflops[1],
        memory_gb=gb,
        mfu=mfu,
        bfloat16=name != "T4",
    )


MODAL = Prices(
    source="modal.com/pricing; peaks and memory from NVIDIA's data sheets, dense",
    date="2026-07-01",
    dollars_per_core_second=0.0000131,
    dollars_per_gib_second=0.00000222,
    free_dollars_per_month=30,
    gpus=(
        _modal("T4", 0.000164, (65, 8.1), 16, (0.25, 0.35)),
        _modal("L4", 0.000222, (121, 30.3), 24, (0.30, 0.40)),
        _modal("A10", 0.000306, (125, 31.2), 24, (0.30, 0.40)),
        _modal("L40S", 0.000542, (362, 91.6), 48, (0.30, 0.40)),
        _modal("A100-40GB", 0.000583, (312, 19.5), 40, (0.35, 0.50)),
        _modal("A100-80GB", 0.000694, (312, 19.5), 80, (0.35, 0.50)),
        _modal("RTX-PRO-6000", 0.000842, (500, 125), 96, (0.30, 0.40)),
        _modal("H100", 0.001097, (989, 67), 80, (0.30, 0.45)),
        _modal("H200", 0.001261, (989, 67), 141, (0.30, 0.45)),
        _modal("B200", 0.001736, (2250, 75), 180, (0.25, 0.40)),
    ),
)

"""Every GPU that Modal rents.

The MFU ranges are assumptions, for compiled code and 100M parameters or more. Those of A100 and H100 lie near what
published codes reach (A100: nanoGPT 30 %, llm.c 60-64 %; H100: modded-nanogpt 40 %, nanochat 41-46 %). All others are a
guess by analogy.
"""


def load_prices(path: str | Path) -> Prices:
    """Another price table, from a YAML file with the fields of `Prices`.

    Raises:
        ValueError: The file is not such a table; one sentence says where.
    """
    try:
        return Prices.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ValueError(f"{path}: {where}: {problem['msg']}, not {problem['input']!r}.") from None


START_UP = (60.0, 300.0)  # seconds, fast and slow end: container, imports, compilation

OVERHEAD = 0.10  # of the training time: evaluation, checkpoints

LARGEST_BATCH = 2**16 - 1  # where the search for the largest batch ends

LAUNCH = (1e-4, 5e-4)  # seconds that a layer takes at least, forward and backward, however small it is

HEADROOM = 0.10  # of the memory: the device's own context, workspaces, fragmentation

UNCOMPILED = 0.5  # share of the MFU that is left without torch.compile


class Estimate(BaseModel):
    """What a run would need on one kind of GPU; pairs are (fast end, slow end) of the assumed MFU range."""

    model_config = ConfigDict(frozen=True)

    gpu: str
    count: int
    dtype: str
    memory_gb: float
    capacity_gb: float
    largest_batch: int = Field(description="rows in the largest micro-batch that fits, looked for up to LARGEST_BATCH")
    tokens_per_second: tuple[float, float]
    hours: tuple[float, float]
    dollars_per_hour: float
    dollars: tuple[float, float]

    @property
    def name(self) -> str:
        """As in a config: `H100` or `H100:8`."""
        return self.gpu if self.count == 1 else f"{self.gpu}:{self.count}"

    @property
    def fits_memory(self) -> bool:
        """Whether the config's micro-batch fits, with headroom."""
        return self.memory_gb <= (1 - HEADROOM) * self.capacity_gb


def dollars_per_hour(config: RunConfig, prices: Prices = MODAL, gpu: str | None = None) -> float:
    """What a container with the config's GPUs (or another kind of GPU), CPU cores and memory costs."""
    modal = config.modal
    each = prices.find(gpu or modal.gpu_name).dollars_per_second
    host = modal.cpu * prices.dollars_per_core_second + modal.memory_mib / 1024 * prices.dollars_per_gib_second
    return 3600 * (modal.gpu_count * each + host)


def tokens_per_step(config: RunConfig) -> int:
    """Tokens that one optimizer step sees, on all GPUs together."""
    training = config.training
    rows = training.batch_size * training.gradient_accumulation_steps * config.modal.gpu_count
    return rows * config.model.context_length


def run_dtype(config: RunConfig, gpu: GPU) -> str:
    """The type of the matrix products on that GPU, as the trainer chooses it."""
    if not config.training.use_amp:
        return "float32"
    if config.training.dtype != "auto":
        return config.training.dtype
    return "bfloat16" if gpu.bfloat16 else "float16"


def estimate(config: RunConfig, prices: Prices = MODAL, gpu: str | None = None) -> Estimate:
    """Memory, speed, hours and dollars of a config on its own GPU, or on as many of another kind.

    Raises:
        ValueError: The GPU is not in the price table.
    """
    row, count, training = prices.find(gpu or config.modal.gpu_name), config.modal.gpu_count, config.training
    dtype = run_dtype(config, row)
    accumulate = training.gradient_accumulation_steps > 1

    def peak(batch_size: int) -> int:
        return count_memory(config.model, batch_size, dtype, "cuda", accumulate, training.optimizer).peak

    budget = (1 - HEADROOM) * row.memory_gb * 1e9
    in_matrix_units = dtype == "float16" or (dtype == "bfloat16" and row.bfloat16)
    flops_per_second = 1e12 * (row.peak_tflops if in_matrix_units else row.float32_tflops)
    flops = training.batch_size * config.model.context_length * count_flops_per_token(config.model)  # a micro-batch
    step_seconds, hours = [], []
    for mfu, launch, start_up in zip(sorted(row.mfu, reverse=True), LAUNCH, START_UP, strict=True):
        reached = flops_per_second * mfu * (1 if training.compile else UNCOMPILED)
        micro_batch = max(flops / reached, config.model.n_layers * launch)
        step_seconds.append(training.gradient_accumulation_steps * micro_batch)
        hours.append((start_up + training.max_steps * step_seconds[-1] * (1 + OVERHEAD)) / 3600)
    rate = dollars_per_hour(config, prices, row.name)
    return Estimate(
        gpu=row.name,
        count=count,
        dtype=dtype,
        memory_gb=peak(training.batch_size) / 1e9,
        capacity_gb=row.memory_gb,
        largest_batch=bisect.bisect_right(range(1, LARGEST_BATCH + 1), budget, key=peak),
        tokens_per_second=(tokens_per_step(config) / step_seconds[0], tokens_per_step(config) / step_seconds[1]),
        hours=(hours[0], hours[1]),
        dollars_per_hour=rate,
        dollars=(hours[0] * rate, hours[1] * rate),
    )


def estimate_all(config: RunConfig, prices: Prices = MODAL) -> list[Estimate]:
    """An `estimate` for every kind of GPU of which the config's number can be rented."""
    count = config.modal.gpu_count
    return [estimate(config, prices, gpu.name) for gpu in prices.gpus if count <= GPU_LIMITS.get(gpu.name, count)]


def _fits(config: RunConfig, found: Estimate) -> bool:
    """Whether the slow end keeps all that the config promises."""
    in_time = 3600 * found.hours[1] <= config.modal.timeout
    return found.fits_memory and in_time and found.dollars[1] <= config.modal.max_dollars


def max_steps_that_fit(config: RunConfig, prices: Prices = MODAL) -> int:
    """The most steps that the config's own GPU does within `timeout` and `max_dollars`, at the slow end."""
    found, steps = estimate(config, prices), config.training.max_steps
    seconds = min(config.modal.timeout, config.modal.max_dollars / found.dollars_per_hour * 3600)
    each = (3600 * found.hours[1] - START_UP[1]) / steps
    return max(0, int((seconds - START_UP[1]) / each))


def _remedy(config: RunConfig, prices: Prices) -> str:
    """The batch size and the steps with which a config would fit its own GPU, checked; empty if there are none.

    Steps that all belong to the warm-up are no remedy: no config may have them.
    """
    changes: dict[str, int] = {}

    def changed() -> RunConfig:
        return dataclasses.replace(config, training=config.training.model_copy(update=changes))

    found = estimate(config, prices)
    if not found.fits_memory:
        changes["batch_size"] = found.largest_batch
    if all(changes.values()) and not _fits(changed(), estimate(changed(), prices)):
        changes["max_steps"] = max_steps_that_fit(changed(), prices)
    too_few = changes.get("max_steps", config.training.max_steps) <= config.training.warmup_steps
    if too_few or not all(changes.values()) or not _fits(changed(), estimate(changed(), prices)):
        return ""
    return " and ".join(f"{name} ≤ {value:,}" for name, value in changes.items())


def verdict(config: RunConfig, prices: Prices = MODAL) -> tuple[bool, str]:
    """Whether a config keeps its own promises of time, money and memory; and what would, or what would be cheaper."""
    found, modal = estimate(config, prices), config.modal
    hours, dollars = found.hours[1], found.dollars[1]
    fitting = [row for row in estimate_all(config, prices) if _fits(config, row)]
    cheapest = min(fitting, key=lambda row: row.dollars[1], default=None)
    there = f"{cheapest.name} ({cheapest.hours[1]:.2f} h, ${cheapest.dollars[1]:.2f})" if cheapest else ""
    if _fits(config, found):
        told = f"Fits: at most {hours:.2f} h of {modal.timeout / 3600:.1f} h and ${dollars:.2f} on {found.name}."
        cheaper = cheapest is not None and cheapest.dollars[1] < dollars
        return True, f"{told} Cheapest: {there}." if cheaper else told
    own = _remedy(config, prices)
    if found.fits_memory:
        told = f"Needs up to {hours:.1f} h and ${dollars:.2f} on {found.name}"
    else:
        told = f"Needs {found.memory_gb:.1f} GB, and {found.name} has {found.capacity_gb:g} GB, a tenth to be left free"
    told += f"; the config allows {modal.timeout / 3600:.1f} h and ${modal.max_dollars:.2f}."
    if not found.fits_memory and found.largest_batch and not own:
        told += f" The memory holds batch_size ≤ {found.largest_batch}, but then time or dollars do not suffice."
    ways = [way for way in (own, f"on {there}" if there else "") if way]
    return False, f"{told} " + (f"Fits if {', or '.join(ways)}." if ways else "It fits on no other GPU either.")


_HEADER = (
    f"{'GPU':<17}{'type':<10}{'MFU, %':>8}{'memory, GB':>15}{'max batch':>11}{'1000 tokens/s':>16}"
    f"{'hours':>14}{'dollars':>16}"
)


def _table_row(row: Estimate, own: bool, prices: Prices) -> str:
    memory = f"{row.memory_gb:.1f}{' ' if row.fits_memory else '!'} of {row.capacity_gb:3g}"
    mfu = "-".join(f"{100 * share:.0f}" for share in prices.find(row.gpu).mfu)
    speed = f"{row.tokens_per_second[1] / 1000:,.0f}-{row.tokens_per_second[0] / 1000:,.0f}"
    hours, dollars = (f"{pair[0]:.2f}-{pair[1]:.2f}" for pair in (row.hours, row.dollars))
    batch = f"{'≥ ' if row.largest_batch == LARGEST_BATCH else ''}{row.largest_batch:,}"
    numbers = f"{mfu:>8}{memory:>15}{batch:>11}{speed:>16}{hours:>14}{dollars:>16}"
    return f"{'*' if own else ' '}{row.name:<16}{row.dtype:<10}{numbers}"


def cost_table(configs: RunConfig | Sequence[RunConfig], prices: Prices = MODAL) -> str:
    """One table of one or more runs on every GPU of the price table, each with the verdict on its own, as text."""
    lines = [_HEADER]
    for config in [configs] if isinstance(configs, RunConfig) else configs:
        tokens, flops = config.training.max_steps * tokens_per_step(config), count_flops_per_token(config.model)
        own = prices.find(config.modal.gpu_name).name
        lines += [
            "",
            f"{config.name}: {count_parameters(config.model):,} parameters, {config.training.max_steps:,} steps of "
            f"{tokens_per_step(config):,} tokens, {flops / 1e9:.3f} GFLOPs per token, {tokens * flops:.2e} in all",
            *(_table_row(row, row.gpu == own, prices) for row in estimate_all(config, prices)),
            verdict(config, prices)[1],
        ]
    return "\n".join(lines)


ASSUMPTIONS = (
    "* the config's GPU; ! does not fit into memory. Hours and dollars from the fast to the slow end of an assumed MFU "
    "range, for compiled models of 100M parameters and more (half of it without torch.compile; small models reach "
    "less). The ranges of A100 and H100 lie near what published codes reach, the others are a guess by analogy. "
    f"Includes {START_UP[0] / 60:g}-{START_UP[1] / 60:g} minutes of start-up, {OVERHEAD:.0%} for evaluation and "
    "checkpoints, and the container's CPU cores and memory. Not counted: the optimizer's own work (little for adamw, "
    "more for muon with small batches), and the communication of several GPUs, as if it were free."
)


def report(config: RunConfig, prices: Prices = MODAL) -> dict[str, object]:
    """All that is known about a config's cost, ready for JSON."""
    honest, sentence = verdict(config, prices)
    found, training = estimate(config, prices), config.training
    accumulate = training.gradient_accumulation_steps > 1
    memory = count_memory(config.model, training.batch_size, found.dtype, "cuda", accumulate, training.optimizer)
    return {
        "config": config.name,
        "parameters": count_parameters(config.model),
        "steps": config.training.max_steps,
        "tokens": config.training.max_steps * tokens_per_step(config),
        "flops_per_token": count_flops_per_token(config.model),
        "prices": {"date": prices.date, "source": prices.source},
        "free_dollars_per_month": prices.free_dollars_per_month,
        "gpu": found.name,
        "memory_bytes": memory.model_dump(),
        "fits": honest,
        "verdict": sentence,
        "max_steps_that_fit": max_steps_that_fit(config, prices),
        "estimates": [row.model_dump() for row in estimate_all(config, prices)],
    }
