"""The GPUs that can be rented: what each can do, what it holds, what it costs.

    MODAL.find("H100").memory_gb  # 80.0

Exported from chapters/10_settings.py; edit it there.
"""

import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from slm.errors import SlmError, in_short

# One table of GPUs


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
