"""The config of a run: a YAML file, checked as a whole before anything is built.

    config = load_config("configs/stories_cpu.yaml", ["training.max_steps=200"])

Exported from chapters/10_settings.py; edit it there.
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
from slm.gpus import ALIASES, MODAL
from slm.model.config import GPTConfig

# A config that cannot be misread

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


# The sections


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


# All mistakes at once

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
