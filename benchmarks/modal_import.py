"""What `import modal_app` costs beside `import modal`, and whether a launch loads PyTorch before anything is rented.

    python benchmarks/modal_import.py [--threads 1] [--rounds 7]

Each time is that of a fresh Python process that does nothing else, its start included, the contenders taking turns. The
last row does all that `modal run modal_app.py` does before it talks to Modal: read the config, print the cost, check.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from timing import bar, interleave, machine, ratio

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = """
import modal_app
from slm.cloud.cost import cost_table
from slm.cloud.launch import check
from slm.training.config import load_config
config = load_config("configs/gpt_124m.yaml")
table, text = cost_table(config), config.to_yaml()
check(config)
"""
CODE = {
    "nothing": "",
    "import modal": "import modal",
    "import modal_app": "import modal_app",
    "until launch": LAUNCH,
}


def python(code: str, threads: int) -> str:
    """What a fresh Python process prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(machine(), end="\n\n")
    contenders = {
        name: (lambda code=code: python(code, arguments.threads))
        for name, code in CODE.items()
    }
    seconds = interleave(contenders, arguments.rounds)
    print("| process | milliseconds | against import modal |")
    print("|---|---|---|")
    for name, times in seconds.items():
        share = ratio(seconds, name, "import modal")
        print(f"| {name} | {1000 * statistics.median(times):.0f} | {share:.2f} |")
    heavy = "[name for name in ('torch', 'datasets', 'wandb', 'tiktoken') if name in sys.modules]"
    loaded = python(f"{LAUNCH}\nimport sys; print(len({heavy}))", arguments.threads)
    print()
    print(
        bar(
            "import modal_app against import modal",
            ratio(seconds, "import modal_app", "import modal"),
            1.5,
            True,
        )
    )
    print(
        bar(
            "of torch, datasets, wandb, tiktoken loaded before a launch",
            float(loaded),
            0,
            True,
        )
    )


if __name__ == "__main__":
    main()
