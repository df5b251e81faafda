"""The one door: `slm train`, `generate`, `cost`, `plan`, `configs`, `data`.

    slm train configs/stories_cpu.yaml training.max_steps=200

Exported from chapters/19_door.py; edit it there.
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

# One command, one function, one block


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


# Writing with a model


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


# Several files and some settings


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


# The one place where errors are told


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
