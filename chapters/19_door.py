# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/cli.py
#     - slm/__main__.py
#     - slm/__init__.py
# ---

# %% [markdown]
# # The door
#
# *An engine room: it can be skipped at first reading.* A package that is used from a
# terminal needs one command, and one that is imported needs one list of names. You
# build both: `slm train`, `slm generate`, `slm cost` and three small ones in
# `slm/cli.py`, `python -m slm`, and `import slm`, which loads nothing until a name is
# used.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% [markdown]
# ## The idea
#
# Behind a good command line stand three habits.
#
# - **It answers at once.** `slm --help` needs none of what the commands need. So heavy
#   imports stand *inside* the commands: PyTorch alone takes longer to load than
#   everything else that the help does.
# - **It tells a mistake from a bug.** A mistake of the user is answered with one
#   sentence and exit code 2; a bug of the program keeps its traceback, because whoever
#   repairs it needs that. Which is which is decided where the error is raised, by its
#   class: whatever a command line, a config, a file or a server can cause is an
#   `SlmError` ([files and errors](#files/one-kind-of-error)) or Python's own `OSError`.
#   Everything else is a bug. Nobody has to read a message to find out.
# - **Its exit code is part of the answer.** A shell goes on after `&&` only if the code
#   is 0, and whatever starts a run again until it succeeds must not take a run that was
#   stopped for a finished one (whoever starts `torchrun` must look for the folder
#   `model`).
#
# What a heavy import costs, measured here, each in a fresh process:

# %%
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """How long a fresh Python process takes for a piece of code, its start included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - began


for code in ("pass", "import argparse", "import torch"):
    print(f"{code:<16} {min(seconds(code) for _ in range(2)):.2f} s")

# %% [markdown]
# ## One command, one function, one block
#
# Each command is two things: a function that takes the parsed arguments and returns the
# exit code, and a block that describes its arguments. The work itself lies in a module
# of its own, which the function imports when it is called.

# %% tags=["hide-input"]
#| export
"""The one door: `slm train`, `generate`, `cost`, `plan`, `configs`, `data`.

    slm train configs/stories_cpu.yaml training.max_steps=200
"""

import argparse
import importlib
import io
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from slm.errors import SlmError, shortened

# %% [markdown]
# `slm train` first, and its function. `--print-config` needs neither PyTorch nor the
# trainer, so both are imported behind it. A run that was stopped has an exit code of
# its own; the reason follows below.


# %%
#| export
def number(text: str) -> float:
    """A number in plain signs; `float` reads 1_0, and the digits of other scripts."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def whole(text: str) -> int:
    """A whole number in plain digits."""
    if not re.fullmatch(r"-?[0-9]{1,40}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _train(arguments: argparse.Namespace) -> int:
    from slm.training.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return 0
    from slm.hardware import world_size
    from slm.training.folder import RunFolder
    from slm.training.run import train

    price, steps = arguments.dollars_per_hour, arguments.steps
    folder = arguments.run_dir
    run = train(config, run_dir=folder, dollars_per_hour=price, steps=steps)
    done = run.finished or RunFolder(run.run_dir).steps_done == steps
    # torchrun would call a process that stopped a failed one
    return 0 if done or world_size() > 1 else 130


# %% [markdown]
# The block beside it says how the arguments are called and what they are for; `--help`
# prints exactly that. Its last line ties the two together: `command` is the function,
# `more` the argument that takes further words.


# %%
#| export
def _add_train(commands: Any) -> None:
    about = "train a model from a config file, or go on where a run was stopped"
    parser = commands.add_parser("train", help=about)
    add = parser.add_argument
    config = "a YAML file, or a name that `slm configs` lists"
    add("config", metavar="CONFIG", help=config)
    change = "change single settings"
    add("overrides", nargs="*", default=[], metavar="section.key=value", help=change)
    folder = "the run's folder (runs/<name of the config> if not given)"
    add("--run-dir", metavar="DIR", help=folder)
    price = "price of the machine, for the metric cost/usd"
    add("--dollars-per-hour", type=number, metavar="PRICE", help=price)
    stop = "stop after step N of the run; without it, the same command goes on"
    add("--steps", type=whole, metavar="N", help=stop)
    only = "print the config with its defaults; train nothing"
    add("--print-config", action="store_true", help=only)
    parser.set_defaults(command=_train, more="overrides")


# %% [markdown]
# A run that Ctrl-C or a SIGTERM stopped has saved itself and could go on, so nothing
# went wrong; but it is not finished either. Its exit code is 130, the one that shells
# give to whatever Ctrl-C ended. One that stopped after the step of `--steps` did what
# was asked: 0. Under `torchrun` the code is 0 all the same: it would take any other for
# a crash of that process, and end the rest while they are still saving.
#
# ## Writing with a model
#
# `slm generate` hands a text out while it grows, and flushes each piece, so that the
# reader sees the model write. That the context is full is not an error but a warning. A
# traceback would be too much for it, and Python's own form (file name, line number,
# source line) would help nobody; so warnings are caught, and told behind the text, on
# the other stream.


# %%
#| export
def _generate(arguments: argparse.Namespace) -> int:
    from slm.generation import stream
    from slm.training.run import load_run

    run = load_run(arguments.run)
    names = ("max_tokens", "temperature", "top_k", "top_p", "seed", "overflow")
    options = {name: getattr(arguments, name) for name in names}
    pieces = stream(run.model, run.tokenizer, arguments.prompt, **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for piece in pieces:
            print(piece, end="", flush=True)
    print()
    for warning in told:
        print(f"slm: {warning.message}", file=sys.stderr)
    return 0


# %% [markdown]
# Its block is a list of the options of [`stream`](#generation), each with its default,
# in the order in which one reaches for them.


# %%
#| export
def _add_generate(commands: Any) -> None:
    parser = commands.add_parser("generate", help="write a text with a trained model")
    add = parser.add_argument
    add("run", metavar="RUN", help="a run's folder, such as runs/stories_cpu")
    beginning = "the beginning of the text (a new one if not given)"
    add("prompt", nargs="?", default="", help=beginning)
    most = "new tokens at most (default: %(default)s)"
    add("--max-tokens", type=whole, default=200, metavar="N", help=most)
    greedy = "0 is greedy (default: %(default)s)"
    add("--temperature", type=number, default=1.0, help=greedy)
    likeliest = "draw from the K likeliest tokens"
    add("--top-k", type=whole, metavar="K", help=likeliest)
    together = "draw from the likeliest tokens that reach P together"
    add("--top-p", type=number, metavar="P", help=together)
    same = "the same seed writes the same text (default: %(default)s)"
    add("--seed", type=whole, default=0, help=same)
    full = "when the context is full (default: %(default)s)"
    add("--overflow", choices=("stop", "slide"), default="stop", help=full)
    parser.set_defaults(command=_generate, more="")


# %% [markdown]
# ## Several files and some settings
#
# A config is a file or the name of one that comes with the package: `slm train
# stories_cpu` works wherever the package is installed, and `slm train stories_cpu
# --print-config > mine.yaml` begins one of your own. `slm configs` says which there
# are, each by the comment that its file begins with.


# %%
#| export
def _configs(arguments: argparse.Namespace) -> int:
    from slm.training.config import shipped_configs

    shipped = shipped_configs()
    width = max(map(len, shipped), default=0)
    for name, path in shipped.items():
        about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        print(f"{name:<{width}}  {about}")
    return 0


def _add_configs(commands: Any) -> None:
    parser = commands.add_parser("configs", help="the configs that come with it")
    parser.set_defaults(command=_configs, more="")


# %% [markdown]
# `slm cost` takes any number of configs, and settings that hold for all of them. Both
# are words, and a word with `=` in it is a setting, unless a folder stands before:
# whoever has a file named `a=b.yaml` writes `./a=b.yaml`. The table, its assumptions,
# and the numbers for a machine come from [the cost](#cost/the-table).


# %%
#| export
PRICES = "a YAML price table instead of the built-in one"


def _is_override(word: str) -> bool:
    """Whether a word is a section.key=value; a file can be written ./a=b.yaml."""
    return "=" in word.partition("/")[0]


def _cost(arguments: argparse.Namespace) -> int:
    from slm.cloud import cost
    from slm.gpus import MODAL, load_prices
    from slm.training.config import load_config

    prices = MODAL if arguments.prices is None else load_prices(arguments.prices)
    overrides = [word for word in arguments.configs if _is_override(word)]
    paths = [word for word in arguments.configs if not _is_override(word)]
    if not paths:
        given = " ".join(overrides)
        raise SlmError(f"slm cost needs a config file, and was given only {given}")
    configs = [load_config(path, overrides) for path in paths]
    if arguments.json:
        print(json.dumps([cost.report(config, prices) for config in configs], indent=2))
        return 0
    print(cost.cost_table(configs, prices), end="\n\n")
    free = f"${prices.free_dollars_per_month:g} a month are free"
    print(f"Prices of {prices.date}, {prices.source}; {free}.")
    print(cost.ASSUMPTIONS)
    return 0


# %% [markdown]
# And the block:


# %%
#| export
def _add_cost(commands: Any) -> None:
    about = "what training would cost on each GPU, before it starts"
    parser = commands.add_parser("cost", help=about)
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG", help="files, or names")
    change = "change single settings, in all the files"
    add("overrides", nargs="*", default=[], metavar="section.key=value", help=change)
    add("--prices", metavar="FILE", help=PRICES)
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_cost, more="configs")


# %% [markdown]
# `slm plan` goes the other way, [from dollars to a
# config](#cost/a-budget-becomes-a-config). It writes a file only if it is given a name,
# and never over one that is there.


# %%
#| export
def _plan(arguments: argparse.Namespace) -> int:
    from slm.cloud.plan import plan
    from slm.gpus import MODAL, load_prices

    prices = MODAL if arguments.prices is None else load_prices(arguments.prices)
    found = plan(arguments.dollars, arguments.gpu, prices)
    print(f"{found.report()}\n\nPrices of {prices.date}, {prices.source}.")
    if arguments.out is not None:
        found.write(arguments.out)
        check = shlex.join(["slm", "cost", arguments.out])
        print(f"{arguments.out} is written: `{check}` checks it.")
    return 0


def _add_plan(commands: Any) -> None:
    about = "the run with the lowest predicted loss for so many dollars"
    parser = commands.add_parser("plan", help=about)
    add = parser.add_argument
    add("dollars", type=number, metavar="DOLLARS", help="to be spent at most")
    kind = "a kind of GPU, or several: H100:8 (default: the best of all)"
    add("--gpu", help=kind)
    add("--prices", metavar="FILE", help=PRICES)
    add("--out", metavar="FILE", help="write its config there")
    parser.set_defaults(command=_plan, more="")


# %% [markdown]
# `slm data` shows the [token files](#prepare/what-lies-in-the-cache) of a cache. It
# deletes nothing unless it is told to, and then only what is stale.


# %%
#| export
def _data(arguments: argparse.Namespace) -> int:
    from slm.data.dataset import token_files

    files, removed = token_files(arguments.folder), 0
    for file in files:
        size, about = file.path.stat().st_size, file.about
        removed += size if file.stale else 0
        held = [f"{about[key]:,} {key}" for key in ("documents", "tokens") if about]
        told = f"stale: {file.stale}" if file.stale else "in use"
        print(f"{file.path}: {', '.join([*held, f'{size / 1e6:,.1f} MB', told])}")
        if file.stale and arguments.remove_stale:
            file.remove()
    what = "removed" if arguments.remove_stale else "stale; --remove-stale deletes them"
    n = sum(bool(file.stale) for file in files)
    print(f"{len(files)} token files; {n} ({removed / 1e6:,.1f} MB) {what}")
    return 0


def _add_data(commands: Any) -> None:
    parser = commands.add_parser("data", help="which token files lie in a cache")
    folder = "the cache_dir (default: %(default)s)"
    parser.add_argument("folder", nargs="?", default="data", metavar="DIR", help=folder)
    delete = "delete those that a later one has replaced"
    parser.add_argument("--remove-stale", action="store_true", help=delete)
    parser.set_defaults(command=_data, more="")


# %% [markdown]
# ## The one place where errors are told
#
# `main` puts the blocks together, calls the command, and is the only place of the
# command line that turns an error into an exit code. Two small things in it need a
# word.
#
# `argparse` takes positional words in one go: in `slm train CONFIG a.b=1 --run-dir DIR
# c.d=2` the last word stands behind an option, and is left over. Each block names the
# argument that takes such words in `more`; anything else that is left over is a
# mistake.
#
# And `slm cost … | head` closes the pipe while we still print. That is no error, the
# reader has seen enough; but it is an `OSError`, so it must be told from those. A pipe
# to a helper process can break in the same way, and *is* an error, so the output itself
# is asked. What is printed may wait in a buffer: it is written out before the end,
# where a closed pipe can still be told. Python would complain once more when it closes
# the output, which therefore leads nowhere from then on.


# %%
#| export
def _parser() -> argparse.ArgumentParser:
    about = "Train small language models, write with them, know the cost."
    parser = argparse.ArgumentParser(prog="slm", description=about)
    version = f"slm {importlib.import_module('slm').__version__}"
    parser.add_argument("--version", action="version", version=version)
    names = "train | generate | cost | plan | configs | data"
    commands = parser.add_subparsers(required=True, metavar=names)
    blocks = (_add_train, _add_generate, _add_cost, _add_plan, _add_configs, _add_data)
    for add in blocks:
        add(commands)
    return parser


# %% [markdown]
# Now `main`, in its order: read the words, hand the left-over ones to the argument that
# takes them, run the command. Below, each way to end has its exit code: stopped, a pipe
# that nobody reads, a mistake told in one sentence. Any other exception is a fault of
# ours, and shows its traceback.


# %%
#| export
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 for a mistake of the user (told in one sentence), 130 if it
        was stopped, 141 if whoever read the output has seen enough.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # signs that a terminal does not have
            stream.reconfigure(errors="replace")
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not arguments.more or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.more:
        words = getattr(arguments, arguments.more) + rest
        setattr(arguments, arguments.more, words)
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()  # what nobody reads shows here, and not at the very end
        return code
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except MemoryError:
        full = "the memory is full: choose a smaller work, or end other programs"
        print(f"slm: {full}", file=sys.stderr)
        return 2
    except (SlmError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(f"slm: {_sentence(error)}", file=sys.stderr)
        return 2


def _nobody_reads() -> bool:
    """Whether a broken pipe is that of the output, and none of the work's own."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _sentence(error: Exception) -> str:
    """What to say of an error; Python's own for files with the number left out."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return shortened(f"{error.strerror}: {error.filename}")
    return shortened(str(error))


# %% [markdown]
# ## `python -m slm` and `import slm`
#
# Two small files make it a package. `python -m slm` opens the same door, also where the
# command `slm` is not on the path; a process that `torchrun` starts comes in here.

# %%
#| export __main__
"""`python -m slm` does what `slm` does.

    python -m slm train configs/stories_cpu.yaml
"""

import sys

from slm.cli import main

if __name__ == "__main__" and __package__ == "slm":  # not imported, no notebook
    sys.exit(main())

# %% [markdown]
# And `import slm` should cost nothing: the names are there, but each module is loaded
# when its name is first used. Python asks a module's `__getattr__` for a name that it
# does not find; ours looks up the address and imports the module. The same names stand
# once more behind `TYPE_CHECKING`, where no program ever comes, for editors and type
# checkers, which read and do not run.

# %%
#| export __init__
"""A GPT-2-class language model in PyTorch, from the chapters of "SLM From Scratch".

    run = slm.train(slm.load_config("configs/stories_cpu.yaml"))

The names below are loaded when they are first used, so that `import slm` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.model.attention import MultiHeadAttention as MultiHeadAttention
    from slm.model.attention import causal_attention as causal_attention
    from slm.model.blocks import FeedForward as FeedForward
    from slm.model.blocks import TransformerBlock as TransformerBlock
    from slm.training.config import load_config as load_config
    from slm.data.batches import TextDataset as TextDataset
    from slm.data.dataset import TokenDataset as TokenDataset
    from slm.data.dataset import create_dataloader as create_dataloader
    from slm.generation import generate as generate
    from slm.generation import stream as stream
    from slm.model.gpt import GPT as GPT
    from slm.model.config import GPTConfig as GPTConfig
    from slm.data.tokenizer import get_tokenizer as get_tokenizer
    from slm.training.trainer import Trainer as Trainer
    from slm.training.run import load_run as load_run
    from slm.training.run import train as train

__version__ = "0.1.0"

# %% [markdown]
# For the running program, one dictionary from names to modules, and the function that
# looks into it:


# %%
#| export __init__
_ADDRESSES = {
    "MultiHeadAttention": "slm.model.attention",
    "causal_attention": "slm.model.attention",
    "FeedForward": "slm.model.blocks",
    "TransformerBlock": "slm.model.blocks",
    "GPTConfig": "slm.model.config",
    "GPT": "slm.model.gpt",
    "get_tokenizer": "slm.data.tokenizer",
    "TextDataset": "slm.data.batches",
    "TokenDataset": "slm.data.dataset",
    "create_dataloader": "slm.data.dataset",
    "load_config": "slm.training.config",
    "Trainer": "slm.training.trainer",
    "load_run": "slm.training.run",
    "train": "slm.training.run",
    "generate": "slm.generation",
    "stream": "slm.generation",
}
__all__ = list(_ADDRESSES)


def __getattr__(name: str) -> Any:
    if name in _ADDRESSES:
        return getattr(importlib.import_module(_ADDRESSES[name]), name)
    raise AttributeError(f"module 'slm' has no attribute {name!r}")


# %% [markdown]
# ## Use it
#
# From here, without a terminal. A mistake first: what is said goes to the error stream,
# what is returned is the exit code.

# %% tags=["nbval-check-output"]
import contextlib
import io

with contextlib.redirect_stderr(io.StringIO()) as said:
    code = main(["cost", "gpt_125m"])
course.show(said.getvalue())
code

# %% [markdown]
# The configs that come with the package, and one of them with all its defaults, of
# which these are the first lines:

# %% tags=["nbval-check-output"]
import contextlib
import io

main(["configs"])
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    code = main(["train", "stories_cpu", "--print-config"])
print(f"exit code {code}", *printed.getvalue().splitlines()[:4], sep="\n")

# %% [markdown]
# And two errors of different classes, raised by the same command in the same place. One
# is told; the other comes through, as a bug should.


# %% tags=["nbval-check-output"]
def told(error: Exception) -> str:
    """What `main` makes of an error that the training raises."""
    import slm.training.run

    def broken(*values, **options):
        raise error

    kept, slm.training.run.train = slm.training.run.train, broken
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            code = main(["train", "configs/stories_cpu.yaml"])
        return f"exit code {code}: {said.getvalue().strip()}"
    except Exception as bug:
        return f"comes through: {bug!r}"
    finally:
        slm.training.run.train = kept


print(told(SlmError("the text is empty")))
print(told(OSError(28, "No space left on device", "runs/x")))
print(told(ValueError("a bug")))

# %% [markdown]
# ## Is it right?
#
# In fresh processes: whether help and names load PyTorch, how long the help takes, and
# how the command ends when its reader has stopped reading.

# %% tags=["nbval-check-output"]
probes = {
    "import slm": "import slm",
    "slm --help": "from slm import cli; cli._parser().format_help()",
    "slm.GPTConfig": "import slm; slm.GPTConfig",
    "slm.GPT": "import slm; slm.GPT",
}
for name, code in probes.items():
    probe = f"{code}\nimport sys; print('torch' in sys.modules)"
    command = [sys.executable, "-c", probe]
    loads = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    print(f"{name:<14} loads torch: {loads}")
command = [sys.executable, "-u", "-m", "slm", "cost", "configs/gpt_124m.yaml"]
with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as slow:
    slow.stdout.close()  # as head does when it has its lines
    print("a closed pipe  exit code", slow.wait(), "and said", slow.stderr.read())

# %%
print(f"slm --help takes {seconds(probes['slm --help']):.2f} s")

# %% [markdown]
# ## Exercises
#
# **1. A door of your own.** Call `command(words)` and return its exit code as `slm`
# does: what the command returns; 2 for an `SlmError` or an `OSError`, whose message is
# handed to `say`; 130 for a KeyboardInterrupt. What is none of these comes through.
# Beware of the order: a `BrokenPipeError` is an `OSError`, and here means 141, with
# nothing said.

# %% tags=["exercise"]
from collections.abc import Callable

from course import check


def my_door(
    command: Callable[[list[str]], int], words: list[str], say: Callable[[str], None]
) -> int:
    """The exit code of a command."""
    raise NotImplementedError("your turn")


check.exit_codes(my_door)

# %% [markdown]
# What the check says to a typical wrong answer, a door that tells everything in a
# sentence:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def tells_everything(command, words, say):
    try:
        return command(words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        say(str(error))
        return 2


check.exit_codes(tells_everything)

# %% [markdown]
# <details><summary>Solution: <code>my_door</code></summary>
#
# ```python
# def my_door(command, words, say):
#     try:
#         return command(words)
#     except KeyboardInterrupt:
#         return 130
#     except BrokenPipeError:
#         return 141
#     except (SlmError, OSError) as error:
#         say(str(error))
#         return 2
# ```
# </details>
#
# **2. A name when it is needed.** Write the heart of a lazy package: `lazy(addresses)`
# returns a function that gives the object of a name, from a dictionary of names and
# modules. It imports a module when one of its names is first asked for and not before,
# and raises an AttributeError that tells the name if there is none. An error while a
# module is imported comes through.

# %% tags=["exercise"]
from typing import Any


def my_lazy(addresses: dict[str, str]) -> Callable[[str], Any]:
    """A function that finds a name, and imports its module only then."""
    raise NotImplementedError("your turn")


check.lazy(my_lazy)

# %% [markdown]
# What the check says to a typical wrong answer, which finds everything and is not lazy:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def finds_all_first(addresses):
    modules = {name: importlib.import_module(at) for name, at in addresses.items()}

    def find(name):
        if name not in addresses:
            raise AttributeError(f"there is no name {name!r}")
        return getattr(modules[name], name)

    return find


check.lazy(finds_all_first)

# %% [markdown]
# <details><summary>Solution: <code>my_lazy</code></summary>
#
# ```python
# import importlib
#
# def my_lazy(addresses):
#     def find(name):
#         if name not in addresses:
#             raise AttributeError(f"there is no name {name!r}")
#         return getattr(importlib.import_module(addresses[name]), name)
#
#     return find
# ```
# </details>
#
# ## What you have now
#
# A command with five verbs and a package whose names cost nothing until they are used.
# What is left is to go through the door with money: the next chapters, [the
# meter](#meter) and [the launch](#launch), rent a GPU.

# %%
course.summary("slm/cli.py", "slm/__main__.py", "slm/__init__.py")
