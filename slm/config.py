"""Configs: YAML files, checked as a whole before anything is built.

Exported from chapters/06_trainer.py; edit it there.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from slm.gpt_config import GPTConfig

GPU_LIMITS = {
    "T4": 8, "L4": 8, "A10": 4, "L40S": 8, "A100": 8, "A100-40GB": 8, "A100-80GB": 8, "RTX-PRO-6000": 8,
    "H100": 8, "H100!": 8, "H200": 8, "B200": 8, "B200+": 8,
}  # fmt: skip


class ConfigError(ValueError):
    """All that is wrong with a config, one line per problem: file, key, what was given, what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _ModelSection(_Section):
    """`model:`, the shape; all but dropout must be given."""

    vocab_size: int = Field(ge=1, description="ids that the tables hold (V); at least the tokenizer's")
    context_length: int = Field(ge=1, description="tokens that the model can look back on (T)")
    n_layers: int = Field(ge=1, description="blocks")
    n_heads: int = Field(ge=1, description="attention heads of each block (H); divides d_model")
    d_model: int = Field(ge=1, description="channels of the residual stream (D)")
    d_ff: int = Field(ge=1, description="channels inside the feed-forward network")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of channels and attention weights that is dropped")

    @model_validator(mode="after")
    def _fits_together(self) -> "_ModelSection":
        GPTConfig(**self.model_dump())
        return self


class TrainingConfig(_Section):
    """`training:`, how the weights are found. A step is one update of the weights."""

    batch_size: int = Field(16, ge=1, description="sequences per micro-batch and process")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches per step")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the blocks' matrices, AdamW for the rest"
    )
    learning_rate: float = Field(6e-4, gt=0, description="the peak, reached after the warm-up")
    min_learning_rate: float = Field(0.0, ge=0, description="where the cosine ends")
    warmup_steps: int = Field(100, ge=0, description="steps in which the rate rises from near zero to its peak")
    max_steps: int = Field(1000, ge=1, description="steps of the whole run, warm-up included")
    weight_decay: float = Field(0.1, ge=0, description="on matrices and embeddings only")
    grad_clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 does not clip")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="memory of the mean gradient")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="memory of the mean squared gradient")
    adam_eps: float = Field(1e-8, gt=0, description="added to the root of the mean squared gradient")
    use_amp: bool = Field(True, description="16-bit matrix products where the device is good at them; false: float32")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="type of the matrix products")
    compile: bool = Field(True, description="torch.compile on CUDA, single or distributed; elsewhere it does not pay")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; null leaves PyTorch's choice")
    log_every: int = Field(10, ge=1, description="steps from one training row to the next")
    eval_every: int = Field(250, ge=1, description="steps between evaluations; each checkpoint is evaluated too")
    eval_batches: int | None = Field(100, ge=1, description="validation batches, the same each time; null takes all")
    checkpoint_every: int = Field(250, ge=1, description="steps from one checkpoint to the next")
    keep_checkpoints: int = Field(2, ge=1, description="newest ones to keep; the best is kept besides")
    sample_tokens: int = Field(120, ge=0, description="tokens of generated text at each evaluation; 0: none")
    seed: int = Field(0, ge=0, description="of the first weights, the order of the text, and dropout")

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainingConfig":
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate = {self.min_learning_rate} exceeds learning_rate = {self.learning_rate}"
            )
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} must be below max_steps = {self.max_steps}")
        return self


class DataConfig(_Section):
    """`data:`, what is read; `dataset` must be given."""

    dataset: str = Field(min_length=1, description="'stories', a Hugging Face hub name, or a path")
    train_split: str = Field("train", description="name of the part to train on")
    val_split: str = Field("validation", description="name of the part that is held out")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="held out where the source has no validation split")
    text_column: str = Field("text", description="column of the source that holds a document")
    tokenizer: str = Field("gpt2", description="'gpt2', 'stories', or the path of a saved one")
    packing: Literal["stream", "documents"] = Field(
        "stream", description="'documents': each row starts with a document"
    )
    max_documents: int | None = Field(None, ge=1, description="per split; null takes all")
    streaming: bool | None = Field(None, description="read a hub data set without storing it; null: decide by size")
    cache_dir: str = Field("data", description="where token files are kept")
    num_workers: int = Field(0, ge=0, le=256, description="threads that prepare batches ahead")


class WandbConfig(_Section):
    """`wandb:`, Weights & Biases. 'auto' uses it where there is a login or WANDB_MODE says so, and never prompts."""

    enabled: Literal[True, False, "auto"] = Field("auto", description="true without a login is an error")
    project: str = Field("slm", description="project that the run appears in")
    entity: str | None = Field(None, description="user or team; null takes the login's own")
    name: str | None = Field(None, description="name of the run; null takes that of the config file")
    tags: list[str] = Field(default_factory=list, description="labels to find the run by")


class ModalConfig(_Section):
    """`modal:`, the rented machine (chapter 9)."""

    gpu: str = Field("T4", description="a GPU that Modal rents, or several of one kind: 'H100:8'")
    timeout: int = Field(14_400, ge=1, le=86_400, description="seconds per attempt")
    max_dollars: float = Field(
        10.0, gt=0, description="refuse to launch above this estimate, and stop when it is spent"
    )
    cpu: float = Field(2.0, gt=0, le=64, description="cores of the machine beside the GPU")
    memory_mib: int = Field(8_192, ge=1_024, le=344_064, description="MiB of its memory, not the GPU's")

    @field_validator("gpu")
    @classmethod
    def _is_rented(cls, gpu: str) -> str:
        name, _, count = gpu.partition(":")
        if name not in GPU_LIMITS:
            raise ValueError(f"allowed are {', '.join(GPU_LIMITS)}, with ':n' for several")
        if ":" in gpu and not (count.isdigit() and 1 <= int(count) <= GPU_LIMITS[name]):
            raise ValueError(f"of {name}, 1 to {GPU_LIMITS[name]} can be had")
        return gpu

    @property
    def gpu_name(self) -> str:
        """The kind of GPU without its number."""
        return self.gpu.partition(":")[0]

    @property
    def gpu_count(self) -> int:
        """How many GPUs of the kind."""
        return int(self.gpu.partition(":")[2] or 1)


class _File(_Section):
    model: _ModelSection
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    wandb: WandbConfig = WandbConfig()
    modal: ModalConfig = ModalConfig()


@dataclass(frozen=True)
class RunConfig:
    """A whole, valid run: what a config file says, with every default filled in. `name` names the run folder."""

    name: str
    model: GPTConfig
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    wandb: WandbConfig = WandbConfig()
    modal: ModalConfig = ModalConfig()

    def as_dict(self) -> dict[str, Any]:
        """The sections as plain dictionaries, as `make_config` takes them."""
        sections = {name: getattr(self, name).model_dump() for name in ("training", "data", "wandb", "modal")}
        return {"model": asdict(self.model), **sections}

    def to_yaml(self) -> str:
        """The text of a config file that gives this config again."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2 (3e-4 is one; 010, 1:30 and dates are texts); a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_OLD = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}

_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] not in _OLD] for first, rules in _Loader.yaml_implicit_resolvers.items()
}

_DIGITS = list("-+.0123456789")

_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][\d_]*)$"), _DIGITS)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(((\d[\d_]*\.\d*|\.\d+)([eE][-+]?\d+)?)|\d[\d_]*[eE][-+]?\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
    _DIGITS,
)


def _problem(error: Any, source: str) -> str:
    """One of pydantic's findings as a line: where, what was given, what is allowed."""
    path, given, kind = [str(part) for part in error["loc"]], error["input"], error["type"]
    sections: dict[str, type[BaseModel]] = {name: f.annotation for name, f in _File.model_fields.items()}  # type: ignore[misc]
    known = list(sections if len(path) < 2 else sections[path[0]].model_fields)
    where = f"{source}: {'.'.join(path[:2])}"
    if kind == "invalid_key":
        return f"{where} is not a key; keys are texts"
    if kind == "extra_forbidden":
        elsewhere = {key: f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
        near = [] if path[-1] in elsewhere else difflib.get_close_matches(path[-1], known, 1)
        near = near or [elsewhere[key] for key in difflib.get_close_matches(path[-1], elsewhere, 1)]
        hint = f"did you mean {near[0]!r}?" if near else f"allowed here are {', '.join(known)}"
        return f"{where} is not a key; {hint}"
    if kind == "missing":
        return f"{where} is missing; it has no default"
    if kind == "value_error":
        shown = "" if isinstance(given, Mapping | BaseModel) else f" = {given!r}"
        return f"{where}{shown}: {error['ctx']['error']}"
    allowed = error["msg"].removeprefix("Input should be ").removesuffix(" or null")
    allowed = allowed.replace("String should have at least 1 character", "a text that is not empty")
    if path == ["model"] or kind in ("model_type", "dict_type"):
        allowed = "a section with keys of its own"
    return f"{where} = {given!r} is not allowed; it must be {allowed}"


def make_config(sections: Mapping[str, Any], name: str = "run", source: str = "config") -> RunConfig:
    """A `RunConfig` from plain dictionaries, one per section.

    Raises:
        ConfigError: With a line for every problem found.
    """
    try:
        parsed = _File.model_validate(dict(sections))
    except ValidationError as error:
        lines = dict.fromkeys(_problem(found, source) for found in error.errors(include_url=False))
        raise ConfigError("\n".join(lines)) from None
    return RunConfig(
        name=name,
        model=GPTConfig(**parsed.model.model_dump()),
        data=parsed.data,
        training=parsed.training,
        wandb=parsed.wandb,
        modal=parsed.modal,
    )


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}:{line} is not YAML: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:  # a value with a tag, such as !!int, that it does not fit
        raise ConfigError(f"{source}: holds a value that cannot be read: {error}") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a config file.

    Args:
        path: A YAML file with the sections model, data, and, where the defaults do not fit, training, wandb, modal.
        overrides: "section.key=value" each, as on the command line; the value is read as YAML.

    Raises:
        ConfigError: With a line for every problem found: file, key, what was given, what is allowed, nearest known key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; the shipped ones are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    sections = _read_yaml(text, str(path))
    if not isinstance(sections, dict):
        expected = ", ".join(_File.model_fields)
        raise ConfigError(f"{path}: holds {type(sections).__name__}; sections are expected: {expected}")
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        sections[section] = {} if sections.get(section) is None else sections[section]
        if not equals or not dot or not isinstance(sections[section], dict):
            raise ConfigError(f"override {override!r} is not understood; write it like training.max_steps=200")
        sections[section][name] = _read_yaml(value, f"override {override!r}")
    return make_config(sections, name=path.stem, source=str(path))
