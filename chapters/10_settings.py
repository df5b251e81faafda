# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/gpus.py
#     - slm/training/config.py
#     - slm/training/metrics.py
# ---

# %% [markdown]
# # Settings
#
# *An engine room: it can be skipped at first reading.* A run is described by a file
# before it starts and by rows of numbers while it goes. You build both ends, a config
# that cannot be misread and observers that write the rows, and one table of GPUs; you
# export `slm.gpus`, `load_config` and the observers.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""The GPUs that can be rented: what each can do, what it holds, what it costs.

    MODAL.find("H100").memory_gb  # 80.0
"""

import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from slm.errors import SlmError, in_short

# %% tags=["hide-input"]
#| export training/config
"""The config of a run: a YAML file, checked as a whole before anything is built.

    config = load_config("configs/stories_cpu.yaml", ["training.max_steps=200"])
"""

import dataclasses
import difflib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from slm.data.corpus import DataConfig
from slm.errors import SlmError, nearest, section, settings
from slm.model.config import GPTConfig
from slm.gpus import ALIASES, MODAL

# %% tags=["hide-input"]
#| export training/metrics
"""What a run tells while it goes: rows of numbers, for a file and for Weights & Biases.

    Trainer(model, loader, None, config, observers=[MetricsFile(Path("rows.jsonl"))])
"""

import functools
import importlib.util
import json
import math
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm.errors import SlmError
from slm.files import force, has_kinds, make_folder, naming
from slm.training.config import RunConfig

# %% [markdown]
# Two ideas run through both ends. *Tell every mistake at once, in a sentence that says
# what to do*: somebody who waits for a rented machine to start should not learn of the
# second typo after mending the first. And *know nothing of who listens*: the code that
# trains should not change when somebody wants its numbers drawn by another service.
#
# ## One table of GPUs
#
# Three parts of the course need facts about GPUs. A config names one and has to be told
# at once if there is none of that name. The trainer divides what a run reaches by what
# the hardware could do. The chapter on [cost](#cost) multiplies hours by a price. If
# each kept a table of its own, a new GPU would be entered in one and missing in the
# others, so there is one, here, and it says where its numbers are from.
#
# Two of the columns deserve a word. The *peak* is for dense matrix products in 16 bits:
# data sheets like to print a number with *sparsity*, twice as large, which counts
# products with zeros that the hardware skips, and a model's matrices hold no such
# zeros. The *product* column says what large products were measured to reach. On most
# cards that is about four fifths of the peak, and so much is put down for the three
# (A10, L40S, RTX PRO 6000) of which no measurement was found. On a T4 it is little more
# than a third: the card may draw 70 watts and slows down to keep to them.


# %%
#| export
class GPU(BaseModel):
    """One GPU: its price, what it can do, what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    dollars_per_second: PositiveFloat
    peak_tflops: PositiveFloat
    """Dense, in bfloat16, or in float16 where there is no bfloat16."""
    product_tflops: PositiveFloat
    """What large products of that type were measured to reach."""
    float32_tflops: PositiveFloat
    """Outside the matrix units, which is where float32 is computed."""
    memory_gb: PositiveFloat
    bfloat16: bool = True
    limit: int = Field(8, ge=1)
    """How many one container can have."""


# %% [markdown]
# The table itself is a row for each GPU, and what belongs to all of them: where the
# prices are from and of which day, and what processor cores and memory cost. `find`
# takes a name as Modal spells it.


# %%
#| export
# Other names that Modal takes. "H100!" is an H100 and never a free upgrade to an H200,
# "B200+" may be a later model; both cost what the plain one does.
ALIASES = {"A100": "A100-40GB", "H100!": "H100", "B200+": "B200"}


class Prices(BaseModel):
    """What a provider charges, on one day."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    date: datetime.date
    dollars_per_core_second: float = Field(ge=0)
    dollars_per_gib_second: float = Field(ge=0)
    free_dollars_per_month: float = Field(ge=0)
    gpus: tuple[GPU, ...] = Field(min_length=1)

    def find(self, name: str) -> GPU:
        """The GPU of that name, as Modal spells it.

        Raises:
            SlmError: The table has none.
        """
        rows = {gpu.name: gpu for gpu in self.gpus}
        wanted = ALIASES.get(name.upper(), name.upper())
        if wanted not in rows:
            table = f"the table of {self.date} has {', '.join(rows)}"
            raise SlmError(f"no price for GPU {name!r}; {table}.")
        return rows[wanted]


# %% [markdown]
# The table itself. Prices are Modal's, peaks and memory NVIDIA's. For the RTX PRO 6000
# NVIDIA prints one number, 4,000 TFLOPS "of AI", which is for products in 4 bits with
# sparsity: without it half, in 8 bits half of that, in 16 bits half again.

# %% mystnb={"code_prompt_show": "The table: ten GPUs, a row each (26 lines)"} tags=["hide-input"]
#| export
# Each row holds the fields of a GPU in their order.
# Products as measured: A100, H100, H200 and B200 in the table of achievable products of
# github.com/stas00/ml-engineering, L4 by github.com/mag-/gpu_benchmark, and the T4,
# under its power limit, in forums.developer.nvidia.com, thread 264462. Four fifths of
# the peak, which is usual, stand for A10, L40S and RTX-PRO-6000.
_GPUS = (
    ("T4", 0.000164, 65, 24, 8.1, 16, False, 8),
    ("L4", 0.000222, 121, 91, 30.3, 24, True, 8),
    ("A10", 0.000306, 125, 100, 31.2, 24, True, 4),
    ("L40S", 0.000542, 362, 290, 91.6, 48, True, 8),
    ("A100-40GB", 0.000583, 312, 268, 19.5, 40, True, 8),
    ("A100-80GB", 0.000694, 312, 268, 19.5, 80, True, 8),
    ("RTX-PRO-6000", 0.000842, 500, 400, 125, 96, True, 8),
    ("H100", 0.001097, 989, 792, 67, 80, True, 8),
    ("H200", 0.001261, 989, 794, 67, 141, True, 8),
    ("B200", 0.001736, 2250, 1745, 75, 180, True, 8),
)

MODAL = Prices(
    source="modal.com/pricing; peaks and memory from NVIDIA's data sheets, dense",
    date=datetime.date(2026, 7, 1),
    dollars_per_core_second=0.0000131,
    dollars_per_gib_second=0.00000222,
    free_dollars_per_month=30,
    gpus=tuple(GPU(**dict(zip(GPU.model_fields, row, strict=True))) for row in _GPUS),
)

# %%
from course.tables import Table
from slm.gpus import MODAL, STEPS

rows = []
for gpu in MODAL.gpus:
    per_hour = 3600 * gpu.dollars_per_second
    sizes = (f"{gpu.product_tflops:,.0f}", f"{gpu.memory_gb:.0f}", f"{per_hour:.2f}")
    peak, per_dollar = f"{gpu.peak_tflops:,.0f}", f"{gpu.product_tflops / per_hour:.0f}"
    rows.append((gpu.name, peak, *sizes, per_dollar))
header = ("GPU", "peak, TFLOP/s", "product, TFLOP/s", "memory, GB", "$ an hour")
header += ("TFLOP/s for a dollar",)
Table(header, rows, f"{len(MODAL.gpus)} GPUs, prices of {MODAL.date}")

# %% [markdown]
# Look at the last column. What a dollar buys goes up and down along the table, is
# smallest at its beginning and largest at its end. Larger GPUs are sooner *and*
# cheaper, if the model can keep them busy.
#
# How busy are they kept? That has been measured, too, if not on every card. All the
# steps below are of one model, GPT-2 small with rows of 1,024 tokens, on one GPU: the
# first three with this course's model, the next three with a plain one, and the last
# three worked out from what others have published. [The cost](#cost) fits its
# prediction to them.


# %%
#| export
class TrainingStep(NamedTuple):
    """How long a GPU took for one micro-batch of GPT-2 small, context 1,024."""

    gpu: str
    code: str
    compiled: bool
    rows: int
    milliseconds: float
    source: str


_OURS = "2026-11-27, PyTorch 2.11"  # bfloat16, fused AdamW
STEPS = (
    TrainingStep("H200", "slm", True, 8, 27.3, _OURS),
    TrainingStep("H200", "slm", True, 32, 74.0, f"{_OURS}, kernels"),
    TrainingStep("H200", "slm", False, 8, 43.5, _OURS),
    TrainingStep("H200", "plain", True, 32, 63.6, _OURS),
    TrainingStep("H200", "plain", False, 8, 37.9, _OURS),
    TrainingStep("H200", "plain", False, 32, 132.5, _OURS),
    # 600,000 steps of 40 micro-batches in about four days on eight GPUs
    TrainingStep("A100-40GB", "nanoGPT", True, 12, 115, "its README"),
    # 10 billion tokens in about 90 and in about 45 minutes on eight GPUs
    TrainingStep("A100-80GB", "llm.c", True, 64, 283, "its discussion 481"),
    TrainingStep("H100", "llm.c", True, 64, 142, "modded-nanogpt's README"),
)

# %%
rows = []
for step in STEPS:
    how = "compiled" if step.compiled else "eager"
    speed = 1024 * step.rows / (step.milliseconds / 1000)
    took = (f"{step.rows}", f"{step.milliseconds:.1f}", f"{speed:,.0f}")
    rows.append((step.gpu, step.code, how, *took, step.source))
header = ("GPU", "code", "", "rows", "ms", "tokens/s", "source")
Table(header, rows, "Steps of GPT-2 small on one GPU")

# %% [markdown]
# A running program knows its GPU only by the name that the driver gives it, such as
# "NVIDIA A100-SXM4-40GB". A table's name fits if all of its words stand in that name.
# Prices change, and you may rent elsewhere: `load_prices` reads another table from a
# YAML file. Each value is read as text and then as what the table wants, so that a date
# is a date with quotes and without them, and a day that the calendar does not have is
# told like every other mistake: all of them at once, a line each, with what was given.
# A key that the table does not have is told, too.


# %%
#| export
def peak_tflops(device_name: str) -> float | None:
    """The peak of a GPU as the driver names it, dense in 16 bits; None if unknown."""
    words = set(device_name.replace("-", " ").split())
    for gpu in MODAL.gpus:
        if set(gpu.name.split("-")) <= words:
            return gpu.peak_tflops
    # what some machines have where an A10 was asked for
    return 70.0 if "A10G" in words else None


def load_prices(path: str | Path) -> Prices:
    """Another price table, from a YAML file with the fields of `Prices`.

    Raises:
        SlmError: The file is not such a table; with a line for each mistake.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return Prices.model_validate(yaml.load(text, yaml.BaseLoader))
    except UnicodeDecodeError as error:
        raise SlmError(f"{path} cannot be read as text: {error}.") from None
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise SlmError(f"{path} is not valid YAML: {why}.") from None
    except ValidationError as error:
        lines = [f"{path}: {_mistake(found)}." for found in error.errors()]
        raise SlmError("\n".join(lines)) from None


def _mistake(found: Any) -> str:
    where = ".".join(str(part) for part in found["loc"]) or "the file"
    if found["type"] == "missing":
        return f"{where} is missing"
    if found["type"] == "extra_forbidden":
        return f"{where} is not a key"
    return f"{where}: {found['msg']}, not {in_short(found['input'])}"


# %% tags=["nbval-check-output"]
for name in ("NVIDIA A100-SXM4-40GB", "NVIDIA RTX PRO 6000 Blackwell Server Edition"):
    print(f"{name}: {peak_tflops(name):.0f} TFLOP/s")
print(peak_tflops("NVIDIA GeForce GTX 1080"))

# %% [markdown]
# ## A config that cannot be misread
#
# A run is described by a file, and a file has typos. An option that is silently ignored
# because its name is misspelt costs a day and is found by luck. So the whole file is
# checked before anything is built, and all that is wrong is said at once: where, what
# was given, what is allowed.
#
# One trap is the parser's own. PyYAML follows an old rule of YAML 1.1 by which `3e-4`,
# written as everybody writes it, is not a number, but `1:30` is one (ninety: it counts
# in sixties), and so is `010` (eight: it counts in eights):

# %% tags=["nbval-check-output"]
import yaml

yaml.safe_load("{plain: 3e-4, with a dot: 3.0e-4, time: 1:30, zero: 010}")


# %% [markdown]
# Our reader takes the old rules for numbers and dates out and puts two of its own in,
# close to JSON's. (`yes` and `on` are still true.) It also refuses a key that stands
# twice, of which the plain parser keeps the last without a word.


# %%
#| export training/config
_MERGE = "tag:yaml.org,2002:merge"  # of the key <<, which takes over another's keys


class _Loader(yaml.SafeLoader):
    """YAML without the old rules for numbers; a key given twice is an error.

    3e-4 is a number; 010, 1:30 and dates are texts.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != _MERGE]
        seen: list[Any] = []
        for key in own:
            name = self.construct_object(key, deep=True)
            if name in seen:
                problem = f"the key {name!r} is given twice"
                mark = key.start_mark
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            seen.append(name)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        """Take over the keys of others; each once, or ten lines would make millions."""
        super().flatten_mapping(node)
        last = {}
        for key, value in node.value:
            simple = isinstance(key, yaml.ScalarNode)
            last[(key.tag, key.value) if simple else key] = key, value
        node.value = list(last.values())


# %% [markdown]
# The rules by which a plain word becomes a number are a table of patterns, sorted by
# the first letter. The old ones for integers, floats and dates go; ours come in their
# place.


# %%
#| export training/config
_OLD = {f"tag:yaml.org,2002:{k}" for k in ("int", "float", "timestamp", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] not in _OLD]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}
_INT = r"^[-+]?(0|[1-9][\d_]{0,999})$"  # Python reads only so long ones
_FLOAT = r"^[-+]?(((\d[\d_]*\.\d*|\.\d+)([eE][-+]?\d+)?)|\d[\d_]*[eE][-+]?\d+"
_FLOAT += r"|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
for _kind, _rule in (("int", _INT), ("float", _FLOAT)):
    _tag, _first = f"tag:yaml.org,2002:{_kind}", list("-+.0123456789")
    _Loader.add_implicit_resolver(_tag, re.compile(_rule, re.ASCII), _first)

# %% [markdown]
# Whatever is wrong with a file is told with its name and its line. A loader can fail in
# other ways than by its own error: by a file that nests too deeply, or by a tag such as
# `!!int` in front of a value that is none.


# %%
#| export training/config
def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.reader.ReaderError as error:  # a sign that YAML does not have
        at, sign = text.count("\n", 0, error.position) + 1, text[error.position]
        raise SlmError(f"{source}: line {at} is not YAML: it holds {sign!r}") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        why = " ".join(filter(None, (error.context, error.problem)))
        raise SlmError(f"{source}:{line} is not YAML: {why}") from None
    except RecursionError:
        raise SlmError(f"{source}: is nested too deeply to be read") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # a tag, such as !!int or !!bool, that the value does not fit
        why = f"holds a value that cannot be read ({error}): leave out its tag"
        raise SlmError(f"{source}: {why}") from None


# %% [markdown]
# What stays of YAML is worth having: `<<: *base` takes over the keys of another
# mapping. What a value turns out to be is somebody else's work, and a message repeats
# at most its first signs: ten names that each stand for nine of the one before would
# print a billion.
#
# ## The sections
#
# A section of the file is a class, and a key of the section is a field: its type, its
# default, its limits, and below it a few words on what it means.
# [`settings`](#files/settings-that-check-themselves) makes such a class check itself
# when it is called, so that nothing else in the package ever has to ask whether a batch
# size is positive. Two sections stand elsewhere, where what they describe is built:
# `model` with [the model](#gpt/the-shape) and `data` with [the
# corpora](#corpora/what-is-read-the-section-data).
#
# The next two cells are long and hold no idea that you need now: the keys of
# `training`, `wandb` and `modal`, each with its unit and default. Open them when you
# write a config of your own.


# %% mystnb={"code_prompt_show": "The section training: its settings, each with what it means (60 lines)"} tags=["hide-input"]
#| export training/config
@settings
class TrainingConfig:
    """The section `training`, how weights are found. A step is one update of them."""

    batch_size: int = Field(default=16, ge=1, le=1_000_000)
    """Sequences per micro-batch and process."""
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=100_000)
    """Micro-batches per step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` is for the blocks' matrices, with AdamW for the rest."""
    learning_rate: float = Field(default=6e-4, gt=0)
    """The peak, after the warm-up."""
    min_learning_rate: float = Field(default=0.0, ge=0)
    """Where the cosine ends."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps up to the peak."""
    max_steps: int = Field(default=1000, ge=1, le=10**12)
    """Steps, warm-up included."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of matrices and embeddings."""
    grad_clip: float = Field(default=1.0, ge=0)
    """The largest norm of a gradient; 0 does not clip."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """For the mean gradient."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """For its mean square."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Added to the root of that."""
    use_amp: bool = True
    """16-bit products where they pay."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the matrix products."""
    compile: bool = True
    """torch.compile on CUDA; elsewhere it does not pay."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Of the CPU; null takes PyTorch's choice."""
    log_every: int = Field(default=10, ge=1)
    """Steps between training rows."""
    eval_every: int = Field(default=250, ge=1)
    """Steps between validations."""
    eval_batches: int | None = Field(default=100, ge=1, le=10**12)
    """Of a validation, always the same; null takes all."""
    checkpoint_every: int = Field(default=250, ge=1)
    """Steps between checkpoints; each has a validation too."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest, and the best besides."""
    sample_tokens: int = Field(default=120, ge=0, le=10**6)
    """Of a sample; 0 writes none."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of weights, order and dropout."""

    def __post_init__(self) -> None:
        low, peak = self.min_learning_rate, self.learning_rate
        if low > peak:
            both = f"min_learning_rate = {low} exceeds learning_rate = {peak}"
            raise ValueError(both)
        warmup, steps = self.warmup_steps, self.max_steps
        if warmup >= steps:
            both = f"warmup_steps = {warmup} must be below max_steps = {steps}"
            raise ValueError(both)


# %% mystnb={"code_prompt_show": "The section wandb, and when it is used (42 lines)"} tags=["hide-input"]
#| export training/config
@settings
class WandbConfig:
    """The section `wandb`, Weights & Biases.

    "auto" uses it where there is a login or WANDB_MODE says so, and never prompts.
    """

    enabled: Literal[True, False, "auto"] = "auto"
    """True without a login is an error."""
    project: str = "slm"
    """The project that the run appears in."""
    entity: str | None = None
    """User or team; null takes the login's own."""
    name: str | None = None
    """The run's name; null takes that of the config file."""
    tags: list[str] = Field(default_factory=list)
    """Labels to find the run by."""

    @field_validator("project", "name")
    @classmethod
    def _is_taken(cls, text: str | None) -> str | None:
        """What the server would refuse, after data and model are made."""
        if text is not None and (re.search(r"[/\\#?%:]", text) or not text.strip()):
            raise ValueError("allowed is a text without / \\ # ? % :")
        if len(text or "") > 128:
            raise ValueError("allowed are at most 128 signs")
        return text

    @field_validator("enabled", mode="before")
    @classmethod
    def _is_chosen(cls, enabled: object) -> object:
        """What equals True or False, as 1 and 0 do, is none of the three."""
        if type(enabled) in (int, float):
            raise ValueError("allowed are true, false and auto")
        return enabled

    @field_validator("tags")
    @classmethod
    def _are_taken(cls, tags: list[str]) -> list[str]:
        if not all(1 <= len(tag) <= 64 for tag in tags):
            raise ValueError("allowed are tags of 1 to 64 signs")
        return tags


# %% [markdown]
# The machine is the last section. What it may ask for is what Modal lends, and that
# stands in the table of GPUs:


# %% mystnb={"code_prompt_show": "The section modal: the rented machine (37 lines)"} tags=["hide-input"]
#| export training/config
@settings
class ModalConfig:
    """The section `modal`, the rented machine."""

    gpu: str = "T4"
    """A GPU that Modal rents, or several of one kind: `H100:8`."""
    timeout: int = Field(default=14_400, ge=1, le=86_400)
    """Seconds per attempt."""
    max_dollars: float = Field(default=10.0, gt=0)
    """No launch above this estimate; stop when it is spent."""
    cpu: float = Field(default=2.0, gt=0, le=64)
    """Cores of the machine beside the GPU."""
    memory_mib: int = Field(default=8_192, ge=1_024, le=344_064)
    """MiB of its memory, not the GPU's."""

    @field_validator("gpu")
    @classmethod
    def _is_rented(cls, gpu: str) -> str:
        name, colon, count = gpu.partition(":")
        names = [each.name for each in MODAL.gpus] + list(ALIASES)
        if name not in names:
            raise ValueError(f"allowed are {', '.join(names)}, with ':n' for several")
        limit = MODAL.find(name).limit
        written = re.fullmatch("[1-9][0-9]?", count)
        if colon and not (written and int(count) <= limit):
            raise ValueError(f"of {name}, 1 to {limit} can be had")
        return gpu

    @property
    def gpu_name(self) -> str:
        """The kind of GPU without its number."""
        return self.gpu.partition(":")[0]

    @property
    def gpu_count(self) -> int:
        """How many GPUs of the kind."""
        return int(self.gpu.partition(":")[2] or 1)


# %% [markdown]
# A run is the five sections together. A part of the package that needs settings is
# handed a section whole, never its values one by one, so a new key reaches the place
# that uses it without passing through ten signatures.


# %%
#| export training/config
@dataclass(frozen=True)
class RunConfig:
    """A whole, valid run: what a config file says, with every default filled in.

    `name` names the run folder.
    """

    name: str
    model: GPTConfig
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    wandb: WandbConfig = WandbConfig()
    modal: ModalConfig = ModalConfig()

    def as_dict(self) -> dict[str, Any]:
        """The sections as plain dictionaries, as `make_config` takes them."""
        order = ("model", "training", "data", "wandb", "modal")
        return {name: dataclasses.asdict(getattr(self, name)) for name in order}

    def to_yaml(self) -> str:
        """The text of a config file that gives this config again."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


# %% [markdown]
# ## All mistakes at once
#
# `make_config` builds the sections one after the other and collects what each finds
# wrong. A misspelt key is answered with the nearest name, and the nearest name may
# belong to another section: people remember that there is a `max_dollars` and forget
# where. So the hint looks in two places, among the section's own keys and among those
# of all sections; without a likeness it lists what is allowed. Similarity is measured
# by `difflib`, from the standard library.

# %%
#| export training/config
SECTIONS: dict[str, Any] = {
    "model": GPTConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "wandb": WandbConfig,
    "modal": ModalConfig,
}
_REQUIRED = ("model", "data")


def make_config(
    sections: Mapping[str, Any], name: str = "run", source: str = "config"
) -> RunConfig:
    """A `RunConfig` from plain dictionaries, one per section.

    Raises:
        SlmError: With a line for every problem found.
    """
    elsewhere = {
        field.name: f"{key}.{field.name}"
        for key, cls in SECTIONS.items()
        for field in dataclasses.fields(cls)
    }
    made, problems = {}, []
    for key, cls in SECTIONS.items():
        if key in sections:
            try:
                made[key] = section(cls, sections[key], f"{source}: {key}", elsewhere)
            except SlmError as error:
                problems.append(str(error))
        elif key in _REQUIRED:
            problems.append(f"{source}: {key} is missing; it has no default")
    for key in sections:
        if key not in SECTIONS:
            hint = nearest(str(key), list(SECTIONS), elsewhere)
            problems.append(f"{source}: {key} is not a key; {hint}")
    if problems:
        raise SlmError("\n".join(problems))
    return RunConfig(name=name, **made)


# %% [markdown]
# Why collect, when the first mistake already makes the config useless? Because mistakes
# come in groups. A config that was written for another version has three keys of
# another name; one that was put together from two files has a section twice as deep.
# Each look at the list costs a start, and on a rented machine a start costs minutes.
#
# From the file to those dictionaries it is a short way. The command line can change
# single keys, `training.max_steps=200`, and what stands behind the sign is read as YAML
# too, so `null`, lists and `3e-4` mean there what they mean in the file.
#
# The configs of the repository travel with the package, so that one that was installed
# alone has them as well. They are found by their names, `load_config("gpt_124m")`; a
# file of that name still comes first.


# %%
#| export training/config
def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by their names."""
    package = Path(str(importlib.resources.files("slm")))
    folder = package / "configs"  # where an installed package has them
    if not folder.is_dir():
        folder = package.with_name("configs")  # the repository
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a config file.

    Args:
        path: A YAML file with the sections model, data, and, where the defaults do not
            fit, training, wandb, modal; or the name of a shipped config.
        overrides: "section.key=value" each, as on the command line; the value is read
            as YAML.

    Raises:
        SlmError: With a line for every problem found: file, key, what was given, what
            is allowed, nearest known key.
    """
    path, shipped = Path(path), shipped_configs()
    if str(path) in shipped and not path.is_file():
        path = shipped[str(path)]
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, shipped, 1)
        hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(shipped)}"
        missing = f"there is no such file, and no shipped config of that name; {hint}"
        raise SlmError(f"{path}: {missing}") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no path
        raise SlmError(f"{path}: cannot be read as text: {error}") from None
    sections = _read_yaml(text, str(path))
    if not isinstance(sections, dict):
        found = "nothing" if sections is None else type(sections).__name__
        expected = ", ".join(SECTIONS)
        raise SlmError(f"{path}: holds {found}; sections are expected: {expected}")
    for override in overrides:
        _apply(override, sections)
    return make_config(sections, name=path.stem, source=str(path))


# %% [markdown]
# An override goes into the dictionaries before they are checked, so a mistake in one is
# told like a mistake in the file.


# %%
#| export training/config
def _apply(override: str, sections: dict[str, Any]) -> None:
    """Change one key of the sections as an override says."""
    key, equals, value = override.partition("=")
    name, dot, field = key.partition(".")
    if sections.get(name) is None:
        sections[name] = {}
    if not equals or not dot or not isinstance(sections[name], dict):
        right = "write it like training.max_steps=200"
        raise SlmError(f"override {override!r} is not understood; {right}")
    sections[name][field] = _read_yaml(value, f"override {override!r}")


# %% [markdown]
# A config with five mistakes, as it would come from a file:

# %% tags=["nbval-check-output"]
from slm.errors import SlmError
from slm.training.config import load_config, make_config

model = {"vocab_size": 1024, "context_length": 128, "n_layers": 3, "n_heads": 3}
bad = {
    "model": model | {"d_model": 128, "d_ff": 512},
    "training": {"learning_rate": "fast", "max_step": 200, "dtype": "fp16"},
    "data": {"dataset": "stories"},
    "modal": {"gpu": "H1000"},
}
try:
    make_config(bad, source="bad.yaml")
except SlmError as error:
    course.show(error, hanging="  ")

# %% [markdown]
# The five lines name the file, the key, the value and what is allowed. Where a key does
# not exist there is a guess at what was meant. A value of the wrong kind is named as it
# was written, so a number in quotes is told apart from a number. And nothing is
# converted in silence: `batch_size: "16"` is refused although it could be read, because
# a file in which one quoted number works invites another in which it does not.
#
# Some keys may change while a run is stopped: how often it is logged, how many threads
# read ahead. Every other change would make another run, and going on with it would give
# something that is neither the old run nor a new one. `changed_keys` tells them apart;
# [a run](#runs/one-run-one-folder-one-process) refuses to go on when it finds any.

# %%
#| export training/config
_FREE = {"log_every", "eval_every", "eval_batches", "checkpoint_every"}
_FREE |= {"keep_checkpoints", "sample_tokens", "threads", "num_workers", "cache_dir"}


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two configs and would make another run.

    Both as `RunConfig.as_dict` gives them; each setting is told with both values. What
    `dtype: auto` came to stands in the checkpoint, so it is compared there.
    """
    changed = []
    for name in ("model", "training", "data"):
        for key, value in now[name].items():
            old = before[name].get(key, value)
            automatic = key == "dtype" and "auto" in (old, value)
            if old != value and key not in _FREE and not automatic:
                changed.append(f"{name}.{key} was {old!r} and is now {value!r}")
    return changed


# %% [markdown]
# A run can be asked to stop after some step, in a launch that tries it before it is
# paid for as a whole. Only a step that is left will do:


# %%
#| export training/config
def check_steps(steps: int | None, done: int, config: RunConfig) -> None:
    """Refuse to stop a run after a step that is none of those that are left.

    Raises:
        SlmError: `steps` are `done` already, or more than `training.max_steps`.
    """
    last = config.training.max_steps
    first = min(done + 1, last)
    if steps is not None and not first <= steps <= last:
        allowed = f"allowed is a number from {first:,} to {last:,}, training.max_steps"
        begun = f"; {done:,} steps are done" if done else ""
        raise SlmError(f"--steps is {steps:,}: {allowed}{begun}")


# %% tags=["nbval-check-output"]
from slm.training.config import changed_keys

before = load_config("configs/stories_cpu.yaml")
again = ["training.seed=1", "training.log_every=5", "model.n_layers=2"]
now = load_config("configs/stories_cpu.yaml", again)
print("\n".join(changed_keys(before.as_dict(), now.as_dict())))

# %% [markdown]
# ## Observers
#
# While a run goes, other parts of the program want to know: a file of rows, a service
# that draws curves, a folder of samples, the checkpoints. The trainer should know none
# of them, or it would be rewritten with each new one. So it tells whoever listens. An
# *observer* is an object with a method for each moment of a run; one that overrides
# none of them does nothing.
#
# {numref}`fig-moments` is a run of twelve steps that logs every two and validates every
# four. Two rules make observers safe. Every process of a run calls its observers at the
# same moments, so an observer may exchange numbers with those of the other processes.
# And an observer that remembers something hands it out as a state, which goes into the
# checkpoint and comes back when the run goes on.


# %% mystnb={"code_prompt_show": "Draw the moments at which observers are told", "figure": {"caption": "When observers are told: once at the start, at each row, after each validation, after every step, and once at the end. After a step come its row, its validation, and then the step itself.", "name": "fig-moments"}, "image": {"alt": "Five rows of dots over twelve steps: on_start before step 1, on_row at every second step, on_validation at 4, 8 and 12, on_step at each, on_end after step 12."}} tags=["hide-input"]
from course.figures.settings import moments

moments()


# %%
#| export training/metrics
class Observer:
    """Somebody who is told how a run goes; a subclass overrides what it needs."""

    def on_start(self, trainer: Any) -> None:
        """`Trainer.train` begins, anew or from a checkpoint."""

    def on_row(self, row: dict[str, Any]) -> None:
        """A row of metrics is there; what is added, later observers see too."""

    def on_validation(self, trainer: Any) -> None:
        """The validation loss is new, in `trainer.val_loss`."""

    def on_step(self, trainer: Any) -> None:
        """A step is done, with its row and validation if they were due."""

    def on_end(self) -> None:
        """Training has come to its end, or was asked to stop."""

    def recovery(self) -> str:
        """What a run that failed can go on from, in words; "" if nothing is known."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold, so that a resumed run tells the same."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


# %% [markdown]
# An observer is not to stop a run, change a weight or reorder batches. Observers are
# told what happened; they do not steer. The one exception is an error: if the disk is
# full, the checkpointer raises, and the run ends with that sentence.
#
# The base class has a body for each moment, so a subclass writes only what it needs,
# and a new moment can be added without touching any of them. Two of its methods are not
# moments: a run that failed asks everybody what it can go on from (`recovery`), and a
# checkpoint asks everybody what has to come back (`state_dict`).
#
# ## Rows that survive a kill
#
# The simplest log is the best: one line of JSON for each row, appended. Nothing needs
# to be rewritten, and a half-written last line is easily recognised. What can go wrong
# comes with the resuming. A run that is killed at step 95 goes on from its checkpoint
# of step 80, and does the steps 81 to 95 again: their rows would stand there twice. So
# the state that goes into the checkpoint is the file's length, and on the way back the
# file is cut to it.
#
# The order matters: a checkpoint that counts on rows must not be on disk before they
# are, or a power failure could take the rows and leave the checkpoint. An `fsync` when
# the length is asked for settles that, and another one of the folder: the name of a new
# file is an entry in its folder, which a power failure could take just as well. And
# where somebody has shortened the file in the meantime, the run says so and goes on:
# the rows are a record, no part of the computation.


# %%
#| export training/metrics
class MetricsFile(Observer):
    """Every row as a line of JSON, appended to a file; its folder is made."""

    def __init__(self, path: Path) -> None:
        self.path, self.step = path, 0

    def on_step(self, trainer: Any) -> None:
        self.step = trainer.step

    def on_row(self, row: dict[str, Any]) -> None:
        make_folder(self.path.parent)
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The file's length; so much of it is then safe from a power failure."""
        if not self.path.exists():
            return {"bytes": 0, "step": self.step}
        force(self.path)
        force(self.path.parent)  # the file's name, too
        return {"bytes": self.path.stat().st_size, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut off the rows of steps that will be done again."""
        if not (has_kinds(state, {"bytes": int, "step": int}) and state["bytes"] >= 0):
            raise ValueError("the length of the metrics is no number")
        content = self.path.read_bytes() if self.path.exists() else b""
        kept = content[: state["bytes"]]
        if len(kept) < state["bytes"]:
            missing = f"rows before step {state['step']:,} are missing"
            print(f"{self.path} is shorter than it was; {missing}")
        if content:
            os.truncate(self.path, kept.rfind(b"\n") + 1)  # whole rows only


# %% [markdown]
# The smallest observer adds a number to each row on its way. It must be told before the
# one that writes:


# %%
#| export training/metrics
class Dollars(Observer):
    """Adds to each row what the run has cost so far, `cost/usd`."""

    def __init__(self, per_hour: float) -> None:
        if not 0 <= per_hour < float("inf"):
            allowed = "allowed is a finite number from 0 on"
            raise SlmError(f"{per_hour} dollars per hour are no price; {allowed}")
        self.per_hour = per_hour

    def on_row(self, row: dict[str, Any]) -> None:
        row["cost/usd"] = self.per_hour * row["seconds"] / 3600


# %%
import tempfile
from pathlib import Path

from slm.training.metrics import MetricsFile

with tempfile.TemporaryDirectory() as folder:
    file = MetricsFile(Path(folder) / "rows.jsonl")
    for step in range(1, 81):
        file.on_row({"step": step})
    state = file.state_dict()
    for step in range(81, 96):
        file.on_row({"step": step})
    before = len(file.path.read_text().splitlines())
    file.load_state_dict(state)
    after = len(file.path.read_text().splitlines())
seen = f"{state['bytes']:,} bytes"
print(f"{before} rows, cut back to {after}: the checkpoint had seen {seen}")

# %% [markdown]
# ## Weights & Biases
#
# The service draws the rows as curves and keeps the runs of a team. Using it must never
# cost a run. So it is off unless there is a login or the environment asks for it, it
# never prompts (a prompt on a machine without a keyboard waits for ever), and a server
# that cannot be reached ends nothing: the log is kept in a folder, and `wandb sync`
# sends it later. A resumed run goes on under the same id, which the checkpoint keeps.
#
# The rows are drawn against the tokens seen and not against steps: runs of different
# batch sizes can then be laid over each other, and the curve of one that goes on fits
# the curve that was there.
#
# A histogram of each gradient every hundred steps shows what a single norm cannot, for
# example a layer whose gradients are all zero. It is counted on the device, in 32 equal
# bins between the least and the largest entry, so that a few dozen numbers travel and
# not all gradients. They travel twice for all of them together: whoever asks a GPU for
# a number waits until it has done all that it was told before.


# %%
#| export training/metrics
def gradient_histograms(model: Any) -> dict[str, Any]:
    """For each parameter, 32 equal bins from its gradient's least to largest entry."""
    import torch

    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    limits = torch.stack([torch.stack(grad.aminmax()) for grad in named.values()])
    row: dict[str, Any] = {}
    for (name, grad), (low, high) in zip(named.items(), limits.tolist(), strict=True):
        entries = grad.float().flatten()
        if not math.isfinite(high - low):  # a float16 step has overflowed
            entries = entries[entries.isfinite()]
            if not len(entries):
                continue
            low, high = (limit.item() for limit in entries.aminmax())
        # float32, in which histc counts, goes no further than 2**24
        parts = entries.split(2**24)
        counts = sum(part.histc(32, low, high).long() for part in parts)
        row[f"gradients/{name}"] = {"low": low, "high": high, "counts": counts}
    if row:
        counted = torch.stack([histogram["counts"] for histogram in row.values()])
        for histogram, counts in zip(row.values(), counted.tolist(), strict=True):
            histogram["counts"] = counts
    return row


# %% mystnb={"code_prompt_show": "Is W&B wanted, and can it be used? (25 lines)"} tags=["hide-input"]
#| export training/metrics
def wants_wandb(config: RunConfig) -> bool:
    """Whether to log to Weights & Biases, as config, WANDB_MODE or a login says.

    Raises:
        SlmError: It is asked for, and not installed or without a login.
    """
    mode, enabled = os.environ.get("WANDB_MODE"), config.wandb.enabled
    if enabled is False or mode == "disabled":
        return False
    wanted = "wandb.enabled is true" if enabled is True else ""
    if mode and not wanted:
        wanted = f"WANDB_MODE is {mode}"
    if importlib.util.find_spec("wandb") is None:
        if wanted:
            raise SlmError(f"{wanted}, but wandb is not installed: pip install wandb")
        return False
    if mode in ("offline", "dryrun"):
        return True
    import wandb

    logged_in = bool(wandb.login(prompt=False, verify=False))
    if wanted and not logged_in:
        cure = "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
        raise SlmError(f"{wanted}, but there is no login: {cure}")
    return logged_in


# %% [markdown]
# The logger keeps the id of its run among what a checkpoint holds: a run that goes on
# finds its curve again.


# %%
#| export training/metrics
class WandbLogger(Observer):
    """Every row at Weights & Biases, against the tokens seen.

    Args:
        config: The run; its section `wandb` says under which project and name.
        folder: Where the client keeps its files; its own choice if not said.
    """

    def __init__(self, config: RunConfig, folder: Path | None = None) -> None:
        self.config, self.folder = config, folder
        self.id, self.known = uuid.uuid4().hex[:8], False
        self.run: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id, self.known = state.get("id", self.id), True


# %% [markdown]
# The client is imported when the run begins, so whoever does not use it need not have
# it. Each row is logged under its step, and drawn over the tokens that were seen.


# %%
#| export training/metrics
@course.add_to(WandbLogger)
def on_start(self, trainer: Any) -> None:
    """Open the run, a new one or the one that the checkpoint names."""
    import wandb

    section = self.config.wandb
    begin = functools.partial(
        wandb.init,
        project=section.project,
        entity=section.entity,
        name=section.name or self.config.name,
        tags=section.tags,
        resume="allow",
        config=self.config.as_dict(),
        dir=self.folder,
        settings=wandb.Settings(init_timeout=30),
    )
    self.run = self._opened(begin)
    self.run.define_metric("*", step_metric="train/tokens_seen")


@course.add_to(WandbLogger)
def on_row(self, row: dict[str, Any]) -> None:
    if self.run is not None:
        shown = {key: _for_wandb(value) for key, value in row.items()}
        self.run.log(shown, step=row["step"])


@course.add_to(WandbLogger)
def on_end(self) -> None:
    if self.run is not None:
        self.run.finish()


# %% [markdown]
# The server may refuse. If it cannot be reached, the log is kept in a folder. If the
# run was deleted there, its id is refused for days, and a log under that id would be
# refused again when it is sent: so a run that goes on is tried once more under a new
# id, which the next checkpoint keeps. What the server would refuse in any case, such as
# a project called `a/b`, the config refuses before data and model are made.


# %% tags=["hide-input"]
from course import add_to


# %% mystnb={"code_prompt_show": "Open the run at W&B, whatever its server says (32 lines)"} tags=["hide-input"]
#| export training/metrics
@add_to(WandbLogger)
def _opened(self, begin: Callable[..., Any]) -> Any:
    """The run at the server; a new one where it was deleted there; else offline."""
    import wandb

    why, new = "", uuid.uuid4().hex[:8]
    for name in [self.id, new] if self.known else [self.id]:
        try:
            run = begin(id=name)
        except wandb.errors.Error as error:  # no training is worth less than a log
            why = str(error).splitlines()[0]
            wandb.teardown()  # it would say that the id is in use
            continue
        if name != self.id:
            now = f"the run goes on there as a new one, {name}"
            print(f"Weights & Biases did not take {self.id} again ({why}); {now}")
            self.id = name
        return run
    later = "it is logged offline: `wandb sync` sends it later"
    print(f"Weights & Biases did not take the run ({why}); {later}")
    return begin(id=self.id, mode="offline")


def _for_wandb(value: Any) -> Any:
    """A histogram as Weights & Biases draws it; everything else as it is."""
    if not isinstance(value, dict):
        return value
    import numpy as np
    import wandb

    edges = np.linspace(value["low"], value["high"], len(value["counts"]) + 1)
    return wandb.Histogram(np_histogram=(np.array(value["counts"]), edges))


# %% [markdown]
# ## Is it right?
#
# The configs that come with the course are read, written out and read again, which must
# give the same; every key that is misspelt by one letter must be answered with the
# right one; and the file's rows must be those that were told.

# %% tags=["nbval-check-output"]
import dataclasses

from slm.training.config import SECTIONS

same = 0
with tempfile.TemporaryDirectory() as folder:
    for shipped in sorted(Path("configs").glob("*.yaml")):
        config = load_config(shipped)
        copy = Path(folder) / shipped.name
        copy.write_text(config.to_yaml(), encoding="utf-8")
        same += load_config(copy) == config
print(f"{same} configs give themselves again")

good, told = load_config("configs/stories_cpu.yaml").as_dict(), 0
fields = [(name, f.name) for name, c in SECTIONS.items() for f in dataclasses.fields(c)]
for name, key in fields:
    bad = {**good, name: {**good[name], f"{key}{key[-1]}": 1}}
    try:
        make_config(bad)
    except SlmError as error:
        told += f"did you mean {key!r}?" in str(error)
print(f"{told} of {len(fields)} misspelt keys are answered with the right one")

# %% [markdown]
# ## Exercise: an override
#
# `my_override(sections, "training.max_steps=200")` returns sections in which that one
# key is changed. The value is read as YAML (`yaml.safe_load` will do here), a section
# that is missing or empty (YAML reads `data:` alone as `{"data": None}`) is made, and
# the sections that were handed in stay as they are, because somebody still holds them.

# %% tags=["exercise"]
from course import check


def my_override(sections: dict, text: str) -> dict:
    """The sections with the one key changed that `text` names."""
    raise NotImplementedError("your turn")


check.override(my_override)

# %% [markdown]
# What the check says to a typical wrong answer. `dict(sections)` copies the outer
# dictionary, and the inner ones are still the same objects:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def shallow(sections: dict, text: str) -> dict:
    key, _, value = text.partition("=")
    name, _, field = key.partition(".")
    sections = dict(sections)
    section = sections[name] = sections.get(name) or {}
    section[field] = yaml.safe_load(value)
    return sections


check.override(shallow)

# %% [markdown]
# <details><summary>Solution: <code>my_override</code></summary>
#
# ```python
# def my_override(sections, text):
#     key, _, value = text.partition("=")
#     name, _, field = key.partition(".")
#     section = {**(sections.get(name) or {}), field: yaml.safe_load(value)}
#     return {**sections, name: section}
# ```
# </details>
#
# ## What you have now
#
# A run is a `RunConfig`, checked before anything is built, whose sections travel whole.
# What is known about a GPU stands in one table. And whoever wants to know how a run
# goes is an `Observer`: it is told of rows, validations and steps, it can keep what it
# needs in the checkpoint, and it never steers. The next chapter, [the
# trainer](#trainer), is handed all three.

# %%
course.summary("slm/gpus.py", "slm/training/config.py", "slm/training/metrics.py")
