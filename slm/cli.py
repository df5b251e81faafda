"""The one door of the package: `slm train`, `slm generate`, `slm cost`.

Exported from chapters/08_cost.py; edit it there.
"""

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
