"""What a launch will cost, the most that it can cost, and what is refused before it.

    check(load_config("configs/gpt_124m.yaml")).dollars

Exported from chapters/20_meter.py; edit it there.
"""

import glob
import itertools
import math
import shlex
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm.cloud.budget import PATIENCE, TICK
from slm.cloud.cost import (
    OVERHEAD,
    START_UP,
    Estimate,
    estimate,
    run_dtype,
    tokens_per_step,
    verdict,
)
from slm.errors import SlmError
from slm.files import user_path
from slm.gpus import MODAL
from slm.training.config import RunConfig, changed_keys, check_steps

# The price of a launch

DATA = "/data"  # where the volume lies in a container
VOLUME = "slm-data"
TEXT_FILES = (".txt", ".jsonl", ".parquet", ".tiktoken")


def how_to_upload(value: str, key: str) -> str:
    """The command that uploads a file, a folder or a pattern's folder, and what then.

    `put` takes one path, and a pattern is for the shell: so the folder before the first
    sign of a pattern is uploaded, and the pattern stays in the config.
    """
    parts = Path(value).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    source = user_path(Path(*fixed))
    target = Path("text", source.resolve().name)
    put = ["modal", "volume", "put", VOLUME, str(source), f"/{target}"]
    there = Path(DATA, target, *parts[len(fixed) :])
    return (
        f"upload it with `{shlex.join(put)}` (before the first upload, "
        f"`modal volume create {VOLUME}`), and write data.{key}: {there}"
    )


def refuse_unseen(config: RunConfig) -> None:
    """Refuse text or a tokenizer that lies on this computer only.

    Raises:
        SlmError: With the command that uploads it.
    """
    for key in ("dataset", "tokenizer"):
        value = getattr(config.data, key)
        looks_so = value.startswith((".", "~", "/")) or value.endswith(TEXT_FILES)
        here = looks_so or glob.has_magic(value) or Path(value).exists()
        known = value in ("stories", "gpt2") or value.startswith(f"{DATA}/")
        if here and not known:
            told = f"data.{key} is {value!r}, which lies on this computer"
            raise SlmError(f"{told}; {how_to_upload(value, key)}")


# what is known of a run that has not begun
NEW: dict[str, Any] = {"checkpoint": 0, "attempts": 0, "seconds": 0.0, "dollars": 0.0}
NEW |= {"tokens_per_s": None}


def remaining(
    config: RunConfig, before: dict[str, Any] = NEW, steps: int | None = None
) -> Estimate:
    """The prediction for the steps of a launch, start-up included.

    Args:
        config: What is trained.
        before: What `report` says of the run so far.
        steps: The step after which the launch stops; the last one, if None.
    """
    found = estimate(config)
    fast, slow = found.tokens_per_second
    if before["tokens_per_s"]:
        slow, fast = before["tokens_per_s"]
    left = (steps or config.training.max_steps) - before["checkpoint"]
    tokens = left * tokens_per_step(config) * (1 + OVERHEAD)
    hours = (START_UP[0] + tokens / fast) / 3600, (START_UP[1] + tokens / slow) / 3600
    rate, flops = found.dollars_per_hour, found.mfu[0] / found.tokens_per_second[0]
    return replace(
        found,
        evidence="measured" if before["tokens_per_s"] else found.evidence,
        mfu=(fast * flops, slow * flops),
        tokens_per_second=(fast, slow),
        hours=hours,
        dollars=(hours[0] * rate, hours[1] * rate),
    )


def measured(config: RunConfig, before: dict[str, Any]) -> str:
    """What a run's own speed says of the steps that are left; empty if unknown."""
    if not before["tokens_per_s"]:
        return ""
    slow, fast = before["tokens_per_s"]
    rest, spent = remaining(config, before), before["dollars"]
    both = rest.hours, rest.dollars
    hours, dollars = (f"{low:.2f} to {high:.2f}" for low, high in both)
    first, last = before["checkpoint"] + 1, config.training.max_steps
    whole = f"{spent + rest.dollars[0]:.2f} to {spent + rest.dollars[1]:.2f}"
    told = f"measured  {slow:,.0f} to {fast:,.0f} tokens/s on {rest.name}, so steps "
    told += f"{first:,} to {last:,} take {hours} h and {dollars} dollars; with the "
    told += f"${spent:.2f} spent, the whole run {whole} dollars"
    return textwrap.fill(told, 88, subsequent_indent=" " * 10)


def check(
    config: RunConfig,
    yes_spend: bool = False,
    before: dict[str, Any] = NEW,
    steps: int | None = None,
) -> Estimate:
    """What a launch will need on the GPU that its config asks for.

    Raises:
        SlmError: The run may cost more than `modal.max_dollars` and not `yes_spend`, or
            the launch cannot work at all.
    """
    refuse_unseen(config)
    check_steps(steps, before["checkpoint"], config)
    expected = remaining(config, before, steps)
    if not expected.fits_memory:
        raise SlmError(verdict(config)[1])
    most, allowed = before["dollars"] + expected.dollars[1], config.modal.max_dollars
    if most > allowed and not yes_spend:
        needs = verdict(config)[1]
        if steps or before["checkpoint"]:
            spent = f"${before['dollars']:.2f} spent; the config allows ${allowed:.2f}."
            needs = f"Needs up to ${expected.dollars[1]:.2f} on {expected.name}, after "
            needs += spent
        all_the_same = f"To spend up to ${most:.2f} all the same, say --yes-spend."
        raise SlmError(f"{needs} {all_the_same}")
    return expected


def budget(
    config: RunConfig,
    expected: Estimate,
    yes_spend: bool = False,
    before: dict[str, Any] = NEW,
    steps: int | None = None,
) -> float:
    """Dollars over all launches of a run, at which the meter ends this one."""
    limit, slow = config.modal.max_dollars, before["dollars"] + expected.dollars[1]
    if yes_spend:
        limit = max(limit, slow)
    return min(limit, slow) if steps else limit


# The most that it can cost

STARTUP = 10 * 60  # seconds in which a container has to start
SPARE = 4  # attempts beyond those that the time limit makes necessary
CORES, RETRIES = 4.0, 2  # of a container that prepares text
# seconds of an attempt: of the one that prepares a whole corpus, or joins the parts
# that others have prepared, and of each of those, at most so many for a split
WHOLE, PART, CONTAINERS = 2 * 60 * 60, 10 * 60, 16
TEXT_SPEED = 20e6  # bytes a second: benchmarks/results/prepare_tokens.md


def most_attempts(config: RunConfig, expected: Estimate) -> int:
    """How often a launch may begin; Modal allows eleven times."""
    needed = math.ceil(3600 * expected.hours[1] / config.modal.timeout)
    return min(needed + SPARE, 11)


def most_dollars(
    config: RunConfig, expected: Estimate, limit: float
) -> dict[str, float]:
    """The most that a launch can cost, by what for; a machine taken away adds to it.

    Args:
        config: What is trained.
        expected: What `check` said of the launch.
        limit: What is left of the budget that the meter keeps.
    """
    rate, n = expected.dollars_per_hour / 3600, most_attempts(config, expected)
    parts = {
        "until the budget is spent": limit,
        "until the meter has ended it": (PATIENCE + n) * TICK * rate,
        f"for {n} start-ups of {STARTUP // 60} minutes": n * STARTUP * rate,
        "for a volume of up to 1 TiB": 0.0,
    }
    if config.data.dataset != "stories":
        second = (1 + RETRIES) * CORES * MODAL.dollars_per_core_second
        one, part = second * (WHOLE + STARTUP), second * (PART + STARTUP)
        what = f"to prepare text in {1 + CONTAINERS} containers (${one:.2f} in one)"
        parts[what] = one + 2 * CONTAINERS * part  # for training and for validation
    return parts


def terms(
    config: RunConfig, expected: Estimate, limit: float, before: dict[str, Any] = NEW
) -> str:
    """What a launch will cost, and the most that it can.

    Args:
        config: What is trained.
        expected: What `check` said of the launch.
        limit: What `budget` said of it.
        before: What `report` says of the run so far.
    """
    low, high = expected.dollars
    will = f"expected  ${low:.2f} to ${high:.2f} on {expected.name}, with start-up"
    if config.data.dataset != "stories":
        a_gigabyte = 1e9 / TEXT_SPEED * CORES * MODAL.dollars_per_core_second
        will += f"; to prepare text ${a_gigabyte:.3f} a gigabyte"
    parts = most_dollars(config, expected, limit - before["dollars"])
    told = " + ".join(f"${dollars:.2f} {what}" for what, dollars in parts.items())
    again = STARTUP / 3600 * expected.dollars_per_hour
    most = f"at most   ${sum(parts.values()):.2f}: {told}; each time the machine is "
    most += f"taken away, ${again:.2f} more"
    lines = [textwrap.fill(one, 88, subsequent_indent=" " * 10) for one in (will, most)]
    return "\n".join(filter(None, [measured(config, before), *lines]))


def reconcile(
    expected: Estimate, result: dict[str, Any], before: dict[str, Any] = NEW
) -> str:
    """Prediction and outcome of a launch, side by side.

    Args:
        expected: What `check` said of it.
        result: What `report` says of the run after it.
        before: What `report` said of the run before it.
    """
    state = "finished" if result["finished"] else "not finished"
    problem = f": {result['problem']}" if result.get("problem") else ""
    loss = "none" if result["val_loss"] is None else f"{result['val_loss']:.4f}"
    told = f"{state} at step {result['step']}, validation loss {loss}"
    both = expected.hours, expected.dollars
    hours, dollars = (f"{fast:.3g} to {slow:.3g}" for fast, slow in both)
    keys = ("seconds", "dollars", "attempts")
    seconds, spent, n = (max(0, result[key] - before[key]) for key in keys)
    tries = f"in {n} attempt{'s' * (n > 1)}"
    reached = "" if result["mfu"] is None else f", {result['mfu']:.0%} MFU"
    return (
        f"{result['run']}: {told}{problem}\n"
        f"{'':<10}{'hours':>18}{'dollars':>18}\n"
        f"{'predicted':<10}{hours:>18}{dollars:>18}   on {expected.name}\n"
        f"{'actual':<10}{seconds / 3600:>18.3g}{spent:>18.3g}   {tries}{reached}"
    )


# Another GPU, another run


def refuse_other(run: str, begun: RunConfig, config: RunConfig, steps: int) -> None:
    """Refuse a config that is not the one that a run was begun with.

    Args:
        run: The run's name.
        begun: The config in its folder, in which it has taken so many `steps`.
        config: The one to go on with.

    Raises:
        SlmError: Settings differ that would make another run, or the precision does.
    """
    changed = changed_keys(begun.as_dict(), config.as_dict())
    old, new = (run_dtype(c, MODAL.find(c.modal.gpu_name)) for c in (begun, config))
    if steps and old != new:
        gpus = f"{begun.modal.gpu} computes in {old} and {config.modal.gpu} in {new}"
        changed.append(f"the precision changes, because {gpus}")
    if changed:
        told = f"the run {run} on the volume was begun with another config"
        another = "--run NAME trains this one as another run"
        raise SlmError(f"{told}: {'; '.join(changed)}. {another}")
