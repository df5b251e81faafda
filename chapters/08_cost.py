# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,kernelspec,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   slm:
#     exports:
#     - slm/cost.py
#     - slm/cli.py
#     - slm/__init__.py
#     - slm/__main__.py
# ---

# %% [markdown]
# # Cost
#
# What a training run costs, known before it starts. You count operations by hand and by machine, measure what your own computer does with them, turn both into hours and dollars on every GPU that Modal rents, and into the loss that they buy, and export `slm.cost`. At the end the package gets its door: `slm train`, `slm generate`, `slm cost`.
#
# *Runs in about 55 seconds on two cores.*

# %%
import course

course.start()

# %%
#| export
import bisect
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from slm.config import GPU_LIMITS, RunConfig
from slm.gpt_config import GPTConfig

# %% [markdown]
# ## The idea
#
# A training run is a known number of multiplications. A GPU does a known number of them per second, of which a program reaches a third or a half, and it has a price per second. The rest is division:
#
# $$\text{hours} = \frac{\text{tokens} \times \text{FLOPs per token}}{3600 \times \text{peak FLOP/s} \times \text{utilisation}}, \qquad \text{dollars} = \text{hours} \times \text{price per hour}$$
#
# Here is where that leads: the three GPT configs of this course on every GPU in the table. Both axes are logarithmic, and down and left is better.

# %% tags=["hide-input"]
from pathlib import Path

import torch

from course.figures.chapter_08 import hours_and_dollars
from slm.config import load_config

gpt_configs = [load_config(path) for path in sorted(Path("configs").glob("gpt_*.yaml"))]
hours_and_dollars(gpt_configs)

# %% [markdown]
# Look at how each model's points lie. If you paid for speed, the fast GPUs would stand to the upper left: less time, more money. They stand to the lower left. The rest of the chapter builds the numbers behind this figure, one at a time, and checks each.
#
# ## FLOPs, by hand
#
# A FLOP is one floating point multiplication or addition. Multiplying a vector of $m$ numbers by an $m \times n$ matrix takes $mn$ multiplications and as many additions: $2mn$. Nearly all work of a GPT is of this kind, so go through one layer with width $D$, hidden width $F$, and $T$ positions, and count what *one token* costs:
#
# | product | shape | FLOPs per token |
# |---|---|---|
# | queries, keys, values | $D \to 3D$ | $6D^2$ |
# | scores $q \cdot k$ with $T$ keys | $D \to T$, all heads together | $2TD$ |
# | weighted sum of $T$ values | $T \to D$ | $2TD$ |
# | output of attention | $D \to D$ | $2D^2$ |
# | feed-forward, up and down | $D \to F \to D$ | $4DF$ |
#
# At the top, once: the logits, $D \to V$, $2DV$. Looking up an embedding multiplies nothing. Norms, GELU and softmax are left out: a few operations per number, against hundreds in the products.
#
# The scores are counted for all $T$ keys, although causal attention needs only half of them on average. That is the convention (Chowdhery et al. 2022, appendix B), and PyTorch's own counter follows it.


# %%
#| export
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


# %% [markdown]
# GPT-2 in numbers, and the rule of thumb "6 FLOPs per parameter and token" beside it. The rule forgets attention over the context, and counts position embeddings that multiply nothing:

# %% tags=["nbval-check-output"]
gpt2 = GPTConfig(vocab_size=50257, context_length=1024, n_layers=12, n_heads=12, d_model=768, d_ff=3072)
{
    "forward, MFLOPs per token": round(count_flops_per_token(gpt2, training=False) / 1e6, 1),
    "training": round(count_flops_per_token(gpt2) / 1e6, 1),
    "6 x 124,439,808 parameters": round(6 * 124_439_808 / 1e6, 1),
}

# %% tags=["hide-input"]
from course.figures.chapter_08 import flops_by_part

flops_by_part([*gpt_configs, load_config("configs/stories_cpu.yaml")])

# %% [markdown]
# The wider the model, the more of it is feed-forward, and the less the vocabulary matters.
#
# ## FLOPs, by machine
#
# PyTorch can watch every operation that really runs and add up its products. That is an independent witness: it knows nothing of our formula. A small model, a whole training step:

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slm.gpt import GPT


def counted_flops(config: GPTConfig, batch_size: int = 2) -> tuple[float, float]:
    """FLOPs per token that PyTorch counts: forward, and forward with backward."""
    model = GPT(config)
    tokens = torch.randint(config.vocab_size, (batch_size, config.context_length))  # (B, T)
    with sdpa_kernel(SDPBackend.MATH):  # plain products: into the fused kernel the counter cannot look
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            model(tokens)
        with FlopCounterMode(display=False) as training:
            model.loss(tokens, tokens).backward()
    return forward.get_total_flops() / tokens.numel(), training.get_total_flops() / tokens.numel()


# %% tags=["nbval-check-output"]
for shape in ((512, 64, 2, 2, 64, 256), (1000, 128, 3, 4, 96, 200)):
    config = GPTConfig(*shape)
    ours = count_flops_per_token(config, training=False), count_flops_per_token(config)
    print([round(count / our, 3) for count, our in zip(counted_flops(config), ours, strict=True)])

# %% [markdown]
# Equal, forward and training. From here on the formula is trusted.
#
# ## Memory
#
# A GPU that is fast enough can still be too small. What lies in its memory during a step:
#
# | what | bytes | when |
# |---|---|---|
# | weights, float32 | $4$ per parameter | always |
# | their 16-bit copies (with autocast) | $2$ per parameter of the layers | from forward to backward |
# | AdamW's two averages | $8$ per parameter | always |
# | gradients | $4$ per parameter | grow in the backward pass |
# | activations that backward needs | per token and layer, below | grow in the forward pass, shrink in the backward pass |
# | the loss's working memory | a block of logits, gradients of stream and output matrix | between the two |
#
# Our loss never holds all logits (chapter 3), so they do not appear. Which activations are kept follows from the layer's code. Backward needs the input of every product and of every norm. With $b$ bytes per number ($b = 2$ under autocast), per token and layer: two norms keep the float32 stream, $2 \cdot 4D$; their outputs go into products, $2bD$; queries, keys and values, $3bD$; the heads' result, $bD$; and GELU keeps
# its input and hands its output to the next product, $2bF$. Dropout adds a byte per mask entry. The loss has two moments: inside it, a block of logits (at most 32 MB on a CPU, 512 MB elsewhere: chapter 3) beside the gradients of the stream and of the output matrix; right behind it, these gradients twice, as they are and multiplied by what comes from above. The larger counts.


# %%
#| export
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


# %% [markdown]
# The witness this time is PyTorch's profiler, which sees every allocation on the CPU. Predicted against measured peak, for three models that stress different terms: many tokens, many weights, many words.

# %%
from course.figures.chapter_08 import peak_of_training_step

for shape, batch_size in (
    ((1000, 128, 4, 4, 128, 512), 16),
    ((1000, 64, 6, 6, 384, 1536), 1),
    ((20000, 64, 2, 4, 128, 512), 4),
):
    config = GPTConfig(*shape)
    predicted, measured = (
        count_memory(config, batch_size, "float32", "cpu").peak,
        peak_of_training_step(config, batch_size),
    )
    print(f"predicted {predicted / 1e6:6.1f} MB, measured {measured / 1e6:6.1f} MB: {predicted / measured - 1:+.1%}")

# %% [markdown]
# A few percent apart. The formula adds up what is alive at two moments; in between, single operations need room for themselves and others have given theirs back. This is one more reason to leave a tenth of the memory free.
#
# ## From FLOPs to seconds, on your machine
#
# How fast is the machine in front of you? One number is its **peak**: FLOP/s in a large matrix product. The other is its **bandwidth**: bytes per second when it only moves numbers. An operation that does few FLOPs per byte waits for memory, however fast the processor is. The roof below is what the two numbers allow, and the points are what the parts of GPT-2 reach, with 256 tokens, and two of them with one.

# %% tags=["hide-input"]
from course.figures.chapter_08 import measure_machine, roofline

machine = measure_machine()
print(
    f"peak {machine.flops_per_second / 1e9:.0f} GFLOP/s, bandwidth {machine.bytes_per_second / 1e9:.0f} GB/s (float32, one thread)"
)
roofline(machine, gpt2)

# %% [markdown]
# Products of many tokens stand on the right, close to the roof. (The slope was measured by copying; what only reads may stand a little above it.) Norms and GELU sit far left, bound by memory: they are hardly in the count, and yet they take time. And the product for *one* token, which is what generation does, reads a whole matrix to use each number once. This is why no program reaches the peak. The share that it does
# reach,
#
# $$\text{MFU} = \frac{\text{tokens per second} \times \text{FLOPs per token}}{\text{peak FLOP/s}}$$
#
# is its *model FLOPs utilisation*: 30 to 60 % for very good code on large models, less for small ones.
#
# ### Predict, then run
#
# A prediction is worth something if it is made before. Time a model of two layers and a model of four, a few steps each: half the difference is a layer, the rest is everything else. From these, predict the seconds of 200 steps of deeper models. Then run them. All times are processor time of the one thread, so that other programs on your machine do not count.

# %%
from course.figures.chapter_08 import median_seconds, training_step

sizes = [GPTConfig(512, 64, n_layers, n_heads=2, d_model=d, d_ff=4 * d) for n_layers, d in ((6, 48), (5, 64), (6, 96))]
steps, predictions = 200, []
for config in sizes:
    shallow = [training_step(GPTConfig(512, 64, n_layers, 2, config.d_model, config.d_ff)) for n_layers in (2, 4)]
    two, four = median_seconds(shallow)
    predictions.append(steps * (two + (config.n_layers - 2) * (four - two) / 2))
print("predicted seconds:", [round(p, 2) for p in predictions])

# %%
import time

for config, predicted in zip(sizes, predictions, strict=True):
    step = training_step(config)  # on 4 rows of 64 tokens
    step()  # the first one allocates
    began = time.process_time()
    for _ in range(steps):
        step()
    seconds = time.process_time() - began
    mfu = steps * 4 * 64 * count_flops_per_token(config) / seconds / machine.flops_per_second
    print(
        f"{config.n_layers} layers of {config.d_model}: predicted {predicted:.2f} s, took {seconds:.2f} s, error {predicted / seconds - 1:+.0%}, MFU {mfu:.0%}"
    )

# %% [markdown]
# Expect an error of up to a tenth, either way: a layer among many is not exactly as fast as one among few, and no two minutes of a shared machine are alike. That is the whole method. On a GPU it costs cents: rent it for two minutes, time twenty steps, and you know the hours. What you can know without renting is the peak and a range for the MFU, and these make the table.
#
# ## Dollars
#
# Prices change, so they carry their date and source, and `--prices FILE` replaces them. Modal bills by the second: the GPU, plus the CPU cores and the memory that you reserve (or use, if that is more). The MFU ranges are assumptions, and stated as such. For A100 and H100 they lie near what published training codes reach: on an A100, nanoGPT 30 %, Raschka's tuned loop 39 %, and llm.c, written in CUDA, 60 to 64 %; on an
# H100, modded-nanogpt's baseline 40 % and nanochat 41 to 46 %. For all other GPUs they are a guess by analogy. All hold for compiled code; without `torch.compile` expect about half. Two peaks belong to each GPU: one for 16-bit products in its matrix units, and a far smaller one for float32. (The 500 of the RTX PRO 6000 is an eighth of its advertised 4,000, which are sparse and in 4 bits.)


# %%
#| export
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


# %% [markdown]
# Everything comes together in `estimate`: one config, one GPU. Each figure has a fast and a slow end, from the two ends of the MFU range. The other assumptions stand in capitals, so that you can see and change them. Small models need `LAUNCH`: a GPU spends a few microseconds to start each of a layer's many operations, however small they are.

# %%
#| export
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


# %% [markdown]
# What `LAUNCH` is for: the little story model on an H100, without it and with it, at the fast end.

# %% tags=["nbval-check-output"]
little, h100 = load_config("configs/stories_cpu.yaml"), MODAL.find("H100")
unbounded = 1e12 * h100.peak_tflops * max(h100.mfu) / count_flops_per_token(little.model)
bounded = estimate(little, gpu="H100").tokens_per_second[0]
print(f"{little.name} on {h100.name}: {unbounded / 1e6:.0f} million tokens per second, {bounded / 1e6:.1f} with LAUNCH")

# %% [markdown]
# What the estimate leaves out. Several GPUs exchange their gradients in every step, and that is costed as if it were free. And the optimizer's own work is not counted. For AdamW that is a few operations per parameter. Muon, however, multiplies each matrix of the blocks with itself a few times over. PyTorch's counter says how much that is for the story model, beside the products that are counted:

# %% tags=["nbval-check-output"]
from slm.trainer import make_optimizers

model = GPT(little.model)
for parameter in model.parameters():
    parameter.grad = torch.ones_like(parameter)
with FlopCounterMode(display=False) as counter:
    for optimizer in make_optimizers(model, little.training):
        optimizer.step()
share = counter.get_total_flops() / (tokens_per_step(little) * count_flops_per_token(little.model))
print(f"{little.training.optimizer}: {share:.0%} on top of a step of {tokens_per_step(little):,} tokens")

# %% [markdown]
# It is work per step, not per token: with large batches the share becomes small.
#
# ## Is the config honest?
#
# A config promises things: so many steps, within a `timeout`, for no more than `max_dollars`, on this GPU. The promise can be checked before anything is rented, and it should hold at the *slow* end of the range. If it does not, say what would, and say "fits if" only of a change that has been through the same check.


# %%
#| export
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


# %% [markdown]
# And the table that `slm cost` prints. On a T4, which has no bfloat16, the trainer takes float16 with loss scaling, at the same speed.


# %%
#| export
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


# %% tags=["nbval-check-output"]
print(cost_table(gpt_configs))

# %% [markdown]
# Read a column from top to bottom: the price per second rises tenfold, and the dollars *fall*, with steps back where the price rises more than the speed. A newer GPU's speed grows faster than its price, and the CPU cores and memory beside it are paid for a shorter time. **The faster GPU is the cheaper one.** The steps back, for the first config:

# %% tags=["nbval-check-output"]
from itertools import pairwise

for row, following in pairwise(estimate_all(gpt_configs[0])):
    if following.dollars[1] > row.dollars[1]:
        price = following.dollars_per_hour / row.dollars_per_hour - 1
        speed = following.tokens_per_second[1] / row.tokens_per_second[1] - 1
        print(f"{row.name} to {following.name}: price {price:+.0%}, speed {speed:+.0%}")

# %% [markdown]
# Why does the smallest config name a T4 all the same, the slowest and dearest in its table? By the hour it is the cheapest, so a first launch that goes wrong costs least on it, and its whole bill stays within the free credit of a month. For the second run change one word, `gpu`. The rule of the faster GPU ends where the model is too small to keep it busy:

# %% tags=["nbval-check-output"]
for config in [load_config("configs/stories_cpu.yaml"), *gpt_configs]:
    cheapest = min(estimate_all(config), key=lambda found: found.dollars[1])
    print(f"{config.name}: cheapest on {cheapest.name}")

# %% [markdown]
# What a wish looks like that cannot come true: 50,000 steps of the first config, in two hours.

# %% tags=["nbval-check-output"]
wish = load_config("configs/gpt_124m.yaml", ["training.max_steps=50000", "modal.timeout=7200"])
verdict(wish)[1]

# %% [markdown]
# ## What size buys
#
# So far a run is hours and dollars. What you want is a low loss. How it falls with the number of parameters $N$ is a measured fact of many model families (Kaplan et al. 2020):
#
# $$L(N) = E + a\,N^{-b}$$
#
# $E$ is what no model can predict, the entropy of the text. For natural language nobody knows it, and it has to be fitted along with $a$ and $b$. Here the grammar gives it exactly. So train five sizes on the same batches, subtract $E$, and a power law must be a straight line on logarithmic axes. The line is fitted to the *first four*, and the fifth tests it.

# %%
from slm import stories
from slm.data import create_dataloader
from slm.tokenizer import get_tokenizer
from slm.trainer import Trainer

floor = stories.reference_lines(get_tokenizer("stories")).floor  # E, in nats per token
source = {"batch_size": 8, "context_length": 128, "tokenizer": "stories", "packing": "documents"}
text = [create_dataloader("stories", split=split, **source) for split in ("train", "validation")]
schedule = {"batch_size": 8, "optimizer": "muon", "learning_rate": 2e-2, "warmup_steps": 30, "eval_batches": 40}
schedule |= {"use_amp": False, "log_every": 300, "eval_every": 1000, "checkpoint_every": 1000}


def final_loss(model: GPTConfig, steps: int) -> float:
    """Validation loss after so many steps, in nats per token."""
    torch.manual_seed(0)
    training = {"training": {**schedule, "max_steps": steps}}
    return Trainer(GPT(model), *text, training, device="cpu", verbose=False).train()[-1]["val/loss"]


models = [GPTConfig(1024, 128, n_layers=2, n_heads=1, d_model=d, d_ff=4 * d) for d in (4, 8, 16, 32, 64)]
sizes, losses = [count_parameters(model) for model in models], [final_loss(model, 300) for model in models]
targets = sum(int((text[0].batch(step)[1] != -100).sum()) for step in range(300))
longer = final_loss(models[-1], 600)

# %% tags=["hide-input"]
from course.figures.chapter_08 import fit_power_law, scaling

law = fit_power_law(sizes[:4], losses[:4], floor)
print(f"L(N) = {floor:.3f} + {law.a:.3g} N^-{law.b:.2f}, fitted to the first four")
for n, loss in zip(sizes, losses, strict=True):
    told = f"loss {loss:.3f}, law {law(n):.3f}: excess {(loss - floor) / (law(n) - floor) - 1:+.0%}"
    print(f"{n:>7,} parameters, {targets / n:4.1f} tokens each: {told}")
print(f"{sizes[-1]:>7,} parameters, {2 * targets / sizes[-1]:4.1f} tokens each: loss {longer:.3f}")
scaling(sizes, losses, floor, law)

# %% [markdown]
# Four points lie within a fifth or so of a line: over more than a tenfold of excess loss. The fifth leaves it upwards. All five saw the same few tokens, and the middle column shows how many that is for each parameter. Is the largest model too large for the text, or undertrained? The last line tells: trained for twice as long, it ends below the law's prediction. A law in $N$ alone holds only where the tokens do not run
# out first; the rule of thumb for language is twenty per parameter (Hoffmann et al. 2022), and templates need fewer. At the other end the law fails, too: towards no parameters at all it goes to infinity, where the loss of a model that knows nothing is $\ln V$.
#
# ## What a dollar buys
#
# Money buys parameters and tokens, so the law must know both. Hoffmann et al. fitted one to over 400 models on web text; its $E$ is an estimate. With it, a price table becomes a question of loss: for each GPU, which of our three models is the best use of so many dollars, and how good?


# %%
def predicted_loss(parameters: float, tokens: float) -> float:
    """Nats per token on web text, by the law of Hoffmann et al. 2022 (their approach 3)."""
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


# %% tags=["hide-input"]
from course.figures.chapter_08 import loss_for_dollars

loss_for_dollars(gpt_configs, predicted_loss)

# %% [markdown]
# Two things. The lines of the GPUs are one line, moved sideways: a GPU that does twice the work for a dollar buys the same loss for half the money, and at the left end only the start-up counts. And a larger budget wants a larger model: a marker stands where the next one takes over. Before it, the large model has seen too few tokens, as ours had above. Read differences off this figure, not values: your text is not
# theirs.
#
# ## The door
#
# A package that is used from a terminal needs one command. `argparse` does the work; two habits make it pleasant. Heavy imports stand *inside* the commands, so that `slm --help` answers at once and not after PyTorch has been loaded. And a mistake of the user is answered with one sentence and exit code 2, while a mistake of the program keeps its traceback. How to tell them apart? A `ValueError` that `slm` itself raises
# is about what it was asked for; one from deeper down is a bug.

# %%
#| export cli
"""The one door of the package: `slm train`, `slm generate`, `slm cost`."""

import argparse
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence


def _train(arguments: argparse.Namespace) -> int:
    from slm.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return 0
    from slm.trainer import train

    run = train(config, run_dir=arguments.run_dir)
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1  # torchrun would call a process that stopped a failed one
    return 0 if run.finished or launched else 130


def _generate(arguments: argparse.Namespace) -> int:
    from slm.generation import stream
    from slm.trainer import load_run

    run = load_run(arguments.run)
    pieces = stream(
        run.model,
        run.tokenizer,
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        overflow=arguments.overflow,
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for piece in pieces:
            print(piece, end="", flush=True)
    print()
    for warning in told:
        print(f"slm: {_as_options(str(warning.message))}", file=sys.stderr)
    return 0


def _is_override(word: str) -> bool:
    """Whether a word is a section.key=value; a file with = in its name can be written ./a=b.yaml."""
    return "=" in word.partition("/")[0]


def _cost(arguments: argparse.Namespace) -> int:
    from slm import cost
    from slm.config import load_config

    prices = cost.load_prices(arguments.prices) if arguments.prices else cost.MODAL
    overrides = [word for word in arguments.configs if _is_override(word)]
    paths = [word for word in arguments.configs if not _is_override(word)]
    if not paths:
        raise ValueError(f"slm cost needs a config file, and was given only {' '.join(overrides)}")
    configs = [load_config(path, overrides) for path in paths]
    if arguments.json:
        print(json.dumps([cost.report(config, prices) for config in configs], indent=2))
        return 0
    print(cost.cost_table(configs, prices), end="\n\n")
    print(f"Prices of {prices.date}, {prices.source}; ${prices.free_dollars_per_month:g} a month are free.")
    print(cost.ASSUMPTIONS)
    return 0


# %% [markdown]
# For machines the same numbers as JSON:


# %%
#| export
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


# %%
#| export cli
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slm", description="Train small language models, write with them, know the cost."
    )
    commands = parser.add_subparsers(required=True, metavar="train | generate | cost")

    train = commands.add_parser("train", help="train a model from a config file, or go on where a run was stopped")
    train.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/stories_cpu.yaml")
    train.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="change single settings")
    train.add_argument("--run-dir", metavar="DIR", help="the run's folder (runs/<name of the config> if not given)")
    train.add_argument("--print-config", action="store_true", help="print the config with its defaults; train nothing")
    train.set_defaults(command=_train)

    generate = commands.add_parser("generate", help="write a text with a trained model")
    generate.add_argument("run", metavar="RUN", help="a run's folder, such as runs/stories_cpu")
    generate.add_argument("prompt", nargs="?", default="", help="the beginning of the text (a new one if not given)")
    generate.add_argument(
        "--max-tokens", type=int, default=200, metavar="N", help="new tokens at most (default: %(default)s)"
    )
    generate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    generate.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens that reach P together"
    )
    generate.add_argument(
        "--seed", type=int, default=0, help="the same seed writes the same text (default: %(default)s)"
    )
    generate.add_argument(
        "--overflow", choices=("stop", "slide"), default="stop", help="when the context is full (default: %(default)s)"
    )
    generate.set_defaults(command=_generate)

    cost = commands.add_parser("cost", help="what training would cost on each GPU, before it starts")
    cost.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files")
    cost.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="change single settings, in all the files"
    )
    cost.add_argument("--prices", metavar="FILE", help="a YAML price table instead of the built-in one")
    cost.add_argument("--json", action="store_true", help="print JSON")
    cost.set_defaults(command=_cost)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a mistake of the user (told in one sentence), 130 if stopped."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    more = {_train: "overrides", _cost: "configs"}.get(arguments.command)  # takes what stands behind an option
    if rest and (more is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if more is not None:
        setattr(arguments, more, getattr(arguments, more) + rest)
    try:
        return arguments.command(arguments)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not _is_users_mistake(error):
            raise
        told = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"slm: {_as_options(told)}", file=sys.stderr)
        return 2


def _as_options(text: str) -> str:
    """A message with its Python arguments spelled as options of the command line."""
    return re.sub(r"\boverflow='(\w+)'", r"--overflow \1", text)


def _is_users_mistake(error: Exception) -> bool:
    """Whether an error is about what was asked for: a file or disk, or an error that `slm` itself raised on purpose."""
    if isinstance(error, OSError):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_here = str(frame.f_globals.get("__name__")).startswith("slm.")
    return raised_here and (isinstance(error, ValueError) or type(error).__module__.startswith("slm."))


# %% [markdown]
# Two small files make it a package. `python -m slm` opens the same door. And `import slm` should cost nothing: the names are there, but each module is loaded when its name is first used.

# %%
#| export __main__
"""`python -m slm` does what `slm` does."""

import sys

from slm.cli import main

if __package__ == "slm":  # and not in a notebook, which has this line too
    sys.exit(main())

# %%
#| export __init__
"""A GPT-2-class language model in PyTorch: the package that the chapters of "SLM From Scratch" build.

The names below are loaded when they are first used, so that `import slm` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.attention import MultiHeadAttention as MultiHeadAttention
    from slm.attention import causal_attention as causal_attention
    from slm.blocks import FeedForward as FeedForward
    from slm.blocks import TransformerBlock as TransformerBlock
    from slm.config import load_config as load_config
    from slm.data import TextDataset as TextDataset
    from slm.data import create_dataloader as create_dataloader
    from slm.generation import generate as generate
    from slm.generation import stream as stream
    from slm.gpt import GPT as GPT
    from slm.gpt import GPTConfig as GPTConfig
    from slm.tokenizer import get_tokenizer as get_tokenizer
    from slm.trainer import Trainer as Trainer
    from slm.trainer import load_run as load_run
    from slm.trainer import train as train

_MODULES = {
    "MultiHeadAttention": "attention",
    "causal_attention": "attention",
    "FeedForward": "blocks",
    "TransformerBlock": "blocks",
    "load_config": "config",
    "TextDataset": "data",
    "create_dataloader": "data",
    "generate": "generation",
    "stream": "generation",
    "GPT": "gpt",
    "GPTConfig": "gpt",
    "get_tokenizer": "tokenizer",
    "Trainer": "trainer",
    "load_run": "trainer",
    "train": "trainer",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"slm.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'slm' has no attribute {name!r}")


# %% [markdown]
# Try the door from here. A mistake first, and then how quickly the help is there, in a fresh process that must not load PyTorch:

# %% tags=["nbval-check-output"]
main(["cost", "configs/gpt_125m.yaml"])

# %%
import subprocess

probe = "import sys; from slm import cli; cli._parser().format_help(); print('torch' in sys.modules)"
began = time.perf_counter()
loads_torch = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.strip()
print(f"loads torch: {loads_torch}; {time.perf_counter() - began:.2f} seconds with Python's own start")

# %% [markdown]
# ## Is it right?

# %% tags=["nbval-check-output"]
small = GPTConfig(512, 64, 2, 2, 64, 256)
t4 = estimate(gpt_configs[0], gpu="T4")
{
    "FLOPs as PyTorch counts them": round(counted_flops(small)[1] / count_flops_per_token(small), 2) == 1,
    "weights as PyTorch counts them": count_memory(small, 1, "float32").weights == 4 * GPT(small).count_parameters(),
    "an hour of a T4 with 2 cores and 8 GiB": round(t4.dollars_per_hour, 4)
    == round(3600 * (0.000164 + 2 * 0.0000131 + 8 * 0.00000222), 4),
    "speed follows the MFU": round(t4.tokens_per_second[0] / t4.tokens_per_second[1], 6) == round(0.35 / 0.25, 6),
    "the shipped configs keep their promises": all(verdict(config)[0] for config in gpt_configs),
    "the wish does not": not verdict(wish)[0],
    "and would with the steps it is told": verdict(
        load_config("configs/gpt_124m.yaml", [f"training.max_steps={max_steps_that_fit(wish)}", "modal.timeout=7200"])
    )[0],
}

# %% [markdown]
# ## Exercises
#
# **1. A gate.** Newer models use a feed-forward network with a gate: *three* matrices, two from $D$ to $F$ and one back. Count the training FLOPs per token of such a model, everything else as in this chapter.

# %% tags=["exercise"]
from course import check


def my_gated_flops(n_layers: int, d_model: int, d_ff: int, vocab_size: int, context_length: int) -> int:
    """Training FLOPs per token, forward and backward."""
    raise NotImplementedError("your turn")


check.gated_flops(my_gated_flops)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_gated_flops(n_layers, d_model, d_ff, vocab_size, context_length):
#     attention = 8 * d_model**2 + 4 * context_length * d_model
#     gated = 6 * d_model * d_ff  # three matrices, two FLOPs per weight
#     forward = n_layers * (attention + gated) + 2 * d_model * vocab_size
#     return 3 * forward  # backward makes two products for each of these
# ```
# </details>
#
# **2. The bill.** A run of so many FLOPs on a GPU: how many hours, how many dollars? The GPU's price is per second. A core costs `core` dollars per second, a GiB of memory `gib`, and both are billed as long as the GPU is.


# %% tags=["exercise"]
def my_bill(
    flops: float, peak_tflops: float, mfu: float, gpu: float, cores: float, core: float, gibs: float, gib: float
) -> tuple[float, float]:
    """Hours and dollars of a run."""
    raise NotImplementedError("your turn")


check.bill(my_bill)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_bill(flops, peak_tflops, mfu, gpu, cores, core, gibs, gib):
#     seconds = flops / (peak_tflops * 1e12 * mfu)
#     return seconds / 3600, seconds * (gpu + cores * core + gibs * gib)
# ```
# </details>
#
# **3. A budget that refuses.** How many whole steps can be promised, with `timeout` seconds and `dollars` to spend, if a step takes between `fast` and `slow` seconds?


# %% tags=["exercise"]
def my_steps(timeout: float, dollars: float, fast: float, slow: float, dollars_per_hour: float) -> int:
    """The most steps that keep both limits, whatever happens."""
    raise NotImplementedError("your turn")


check.steps_within(my_steps)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_steps(timeout, dollars, fast, slow, dollars_per_hour):
#     affordable = dollars / dollars_per_hour * 3600  # seconds that the money lasts
#     return int(min(timeout, affordable) / slow)  # a promise is kept at the slow end
# ```
# </details>
#
# **4. Five dollars.** Which model, on which GPU, gives the lowest predicted loss for a budget? A model is its parameters and its training FLOPs per token; a GPU is the FLOP/s that it reaches, and its dollars per hour. Leave start-up out; `law(parameters, tokens)` gives the loss.


# %% tags=["exercise"]
def my_best_buy(
    models: dict[str, tuple[float, float]], gpus: dict[str, tuple[float, float]], dollars: float, law
) -> tuple[str, str]:
    """The names of the model and of the GPU."""
    raise NotImplementedError("your turn")


check.best_buy(my_best_buy)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_best_buy(models, gpus, dollars, law):
#     def loss(model, gpu):
#         (parameters, flops_per_token), (flops_per_second, dollars_per_hour) = models[model], gpus[gpu]
#         seconds = dollars / dollars_per_hour * 3600
#         return law(parameters, seconds * flops_per_second / flops_per_token)
#
#     return min(((model, gpu) for model in models for gpu in gpus), key=lambda pair: loss(*pair))
# ```
# </details>
#
# ## What you have now
#
# The cost of any config before it starts, with every assumption on the table, and a package with a door. What is left is to go through it: the next chapter launches a run on a rented GPU, from inside the notebook.

# %%
course.summary("slm/cost.py", "slm/cli.py", "slm/__init__.py", "slm/__main__.py")
