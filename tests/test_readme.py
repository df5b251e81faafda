"""Every code block of the README is run. What needs a network has a local stand-in, which each test names."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from modal.cli.billing import billing_cli

from slm.cli import main
from slm.data import stories
from slm.model.config import GPTConfig
from slm.model.gpt import GPT
from slm.training.config import load_config
from slm.training.run import train

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```$",
    (ROOT / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, with the shipped configs."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch, gpt2_cache, tmp_path):
    """Stand-ins: a small random GPT-2 for the hub's, 20 stories for TinyStories, the test package's vocabulary for GPT-2's."""
    import datasets
    import huggingface_hub

    torch.manual_seed(0)
    GPT(GPTConfig(50257, 64, 1, 2, 16, 32)).save_pretrained(tmp_path / "hub")
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda name, file: str(tmp_path / "hub" / file),
    )
    rows = datasets.Dataset.from_dict(
        {"text": [stories.sample(seed) * 20 for seed in range(20)]}
    )
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, *_, **__: datasets.DatasetDict(train=rows, validation=rows),
    )


def test_the_kinds_of_blocks_are_those_that_are_tested_here():
    assert {kind for kind, _ in BLOCKS} == {"console", "python", "text", "yaml"}
    assert len(blocks("python")) == 3 and len(blocks("yaml")) == 1


@pytest.mark.parametrize("code", blocks("python"), ids=["trainer", "gpt2", "batches"])
def test_python_block(code, elsewhere, no_network, capsys):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    if "TextDataset" in code:
        assert names["x"].shape == names["y"].shape and torch.equal(
            names["x"][1:], names["y"][:-1]
        )
    else:
        assert len(capsys.readouterr().out.split()) > 3


def test_yaml_block_trains_on_a_text_of_ones_own(elsewhere, no_network):
    (elsewhere / "path/to").mkdir(parents=True)
    (elsewhere / "path/to/my_text.txt").write_text(
        "\n\n".join(stories.sample(seed) for seed in range(60))
    )
    (elsewhere / "my_text.yaml").write_text(blocks("yaml")[0])
    quick = [
        "training.max_steps=2",
        "training.warmup_steps=1",
        "training.batch_size=2",
        "training.sample_tokens=2",
    ]
    run = train(load_config("my_text.yaml", quick), verbose=False)
    assert run.finished and run.val_loss > 0


def commands():
    lines = "".join(blocks("console")).splitlines() + [
        found
        for found in re.findall(
            r"`(slm train [^`]*)`", (ROOT / "README.md").read_text()
        )
    ]
    return [shlex.split(line, comments=True) for line in lines]


def test_make_targets_exist():
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    named = {words[1] for words in commands() if words[0] == "make"} | set(
        re.findall(r"`make (\w+)`", (ROOT / "README.md").read_text())
    )
    assert (
        named >= {"book", "test", "lab", "train", "export", "clean"}
        and named <= targets
    )


def test_slm_commands_work_one_after_the_other(elsewhere, capsys):
    """In the order of the README; the training is cut to two steps, which the run folder then shows as finished."""
    short = [
        "training.max_steps=2",
        "training.warmup_steps=1",
        "training.sample_tokens=2",
        "training.eval_batches=1",
    ]
    ran = []
    for program, *arguments in commands():
        if Path(program).name != "slm":
            continue
        arguments = [
            path
            for a in arguments
            for path in (map(str, sorted(Path().glob(a))) if "*" in a else [a])
        ]
        if arguments[0] == "train":
            arguments = [
                a for a in arguments if not a.startswith("training.max_steps")
            ] + short
        assert main(arguments) == 0, arguments
        ran.append(arguments[0])
    assert set(ran) == {"train", "generate", "cost", "plan"} and ran.count("train") >= 2
    assert (elsewhere / "runs/stories_cpu/model").is_dir() and (
        elsewhere / "runs/short/model"
    ).is_dir()
    assert "$" in capsys.readouterr().out


def test_modal_commands_name_what_is_there():
    # the script beside it would name the place where the environment was made
    modal = [words[2:] for words in commands() if words[1:3] == ["-m", "modal"]]
    assert [words[1] for words in modal] == ["setup", "run", "run", "run", "billing"]
    assert not [words for words in commands() if Path(words[0]).name == "modal"]
    assert all((ROOT / words[4]).exists() for words in modal[1:4])
    assert (ROOT / "modal_app.py").exists()
    asked = CliRunner().invoke(billing_cli, [*modal[4][2:], "--help"])
    assert asked.exit_code == 0 and "--resolution" in asked.output


def test_dollars_of_the_three_launches_are_those_that_slm_cost_computes(capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"--config (\S+)(?: --steps (\d+))? +# \$(\S+) to \$(\S+)$"
    found = re.findall(pattern, readme, re.MULTILINE)
    assert [steps for _, steps, *_ in found] == ["", "600", ""]
    assert (
        main(["cost", *map(str, sorted((ROOT / "configs").glob("*.yaml"))), "--json"])
        == 0
    )
    costs = {each["config"]: each for each in json.loads(capsys.readouterr().out)}
    whole = {
        name: next(row for row in each["estimates"] if row["gpu"] == each["gpu"])
        for name, each in costs.items()
    }
    done = 0
    for path, steps, *told in found:
        name = Path(path).stem
        stop = int(steps or costs[name]["steps"])
        share = (stop - done) / costs[name]["steps"]
        rate = whole[name]["dollars_per_hour"] / 3600
        for end, start_up in enumerate((60, 300)):  # seconds, once in each launch
            training = whole[name]["dollars"][end] - start_up * rate
            assert told[end] == f"{start_up * rate + share * training:.2f}"
        done = stop if steps else 0
    (free,) = {each["free_dollars_per_month"] for each in costs.values()}
    together = sum(row["dollars"][1] for row in whole.values())
    assert f"${free:g} of compute a month" in readme and together < free
    assert f"${together:.2f} that all shipped configs together" in readme


def test_linked_files_exist():
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_citation_is_valid_yaml_with_title_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (
        citation["title"] and citation["license"] == "MIT" and citation["cff-version"]
    )


def test_the_development_container_sets_up_as_make_does():
    """With the CPU build that the README names, and the version of the Makefile."""
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    make = (ROOT / "Makefile").read_text()
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}: \$\(STAMP\)$", make, re.MULTILINE)
    torch_there = container["containerEnv"]["TORCH"]
    assert f'TORCH="{torch_there}"' in (ROOT / "README.md").read_text()
    default = re.search(r"^TORCH \?= (\S+)$", make, re.MULTILINE)
    assert default and torch_there.startswith(f"{default[1]}+cpu ")
