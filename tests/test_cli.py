"""The door: exit codes, one sentence for a mistake of the user, no heavy import for --help."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

import slm
from slm import cli
from slm.cloud import cost
from slm.data.tokenizer import get_tokenizer
from slm.errors import SlmError
from slm.model.config import GPTConfig
from slm.model.gpt import GPT
from slm.training.run import Run
from slm.training.trainer import Trainer

TINY = {
    "model": {
        "vocab_size": 1024,
        "context_length": 32,
        "n_layers": 1,
        "n_heads": 2,
        "d_model": 16,
        "d_ff": 32,
    },
    "training": {
        "batch_size": 2,
        "max_steps": 3,
        "warmup_steps": 1,
        "eval_every": 3,
        "eval_batches": 1,
        "threads": 1,
    },
    "data": {"dataset": "stories", "tokenizer": "stories", "max_documents": 200},
    "wandb": {"enabled": False},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A tiny config, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture
def a_run(monkeypatch):
    """`load_run` gives an untrained model, so that the door is tested and not the room behind it."""
    model = GPT(GPTConfig(**TINY["model"]))
    run = Run(Path("runs/tiny"), model, get_tokenizer("stories"), [], None, True)
    monkeypatch.setattr("slm.training.run.load_run", lambda folder: run)
    return run


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


# ---------------------------------------------------------------- the door


def test_help_does_not_load_torch():
    for command in ([], ["train"], ["generate"], ["cost"]):
        probe = f"import sys; from slm.cli import main\ntry: main({[*command, '--help']})\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
        assert python("-c", probe).stdout.splitlines()[-1] == "0 False"


def test_python_m_slm_is_the_same_door():
    result = python("-m", "slm", "--help")
    assert result.returncode == 0
    assert "train | generate | cost | plan | configs | data" in result.stdout
    assert python("-m", "slm").returncode == 2


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"slm {slm.__version__}\n"


# ---------------------------------------------------------------- train


def test_train_then_generate(config, capsys):
    assert (
        cli.main(
            [
                "train",
                config,
                "training.max_steps=2",
                "--run-dir",
                "there",
                "training.seed=3",
            ]
        )
        == 0
    )
    assert "seed: 3" in Path("there/config.yaml").read_text()
    assert Path("there/model").is_dir()
    capsys.readouterr()
    assert cli.main(["generate", "there", "Once", "--max-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Once") and out.endswith("\n")
    assert err == ""


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["training.max_stepps=3"], "did you mean 'max_steps'"),
        (["model.n_heads=3"], "does not divide"),
        (["training.batch_size=many"], "batch_size"),
        (["nonsense"], "nonsense"),
        (["data.dataset=nowhere.txt"], "nowhere.txt"),
        (["model.vocab_size=100"], "too small"),
    ],
)
def test_a_wrong_setting_is_one_sentence(config, capsys, overrides, sentence):
    assert cli.main(["train", config, *overrides]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.startswith("slm: ")
    assert "Traceback" not in err
    assert not list(Path("runs").glob("*/config.yaml"))


def test_print_config_prints_what_would_be_trained_and_trains_nothing(
    config, capsys, tmp_path
):
    assert cli.main(["train", config, "training.max_steps=77", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "weight_decay: 0.1" in printed  # a default
    (tmp_path / "again.yaml").write_text(printed)
    again = slm.load_config(tmp_path / "again.yaml")
    assert (
        again.as_dict() == slm.load_config(config, ["training.max_steps=77"]).as_dict()
    )
    assert not Path("runs").exists()
    probe = f"import sys; from slm.cli import main; main(['train', {config!r}, '--print-config']); print('torch' in sys.modules)"
    assert python("-c", probe).stdout.splitlines()[-1] == "False"


def test_a_missing_config_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_options_are_refused(config, capsys):
    for arguments in (
        ["train", config, "--sped"],
        ["cost", config, "--sped"],
        ["generate", "run", "text", "more"],
        [],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert "usage: slm" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1_0", "٢", "+5", " 5", "1.0", "", 5000 * "1"])
def test_a_number_on_the_command_line_is_in_plain_digits(config, capsys, value):
    for command in (["train", config, "--steps"], ["generate", "run", "--max-tokens"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, value])
        assert stop.value.code == 2
        assert "is no whole number" in capsys.readouterr().err
    for value in ("1_0", "٢"):
        with pytest.raises(SystemExit):
            cli.main(["generate", "run", "--temperature", value])
        assert "invalid number value" in capsys.readouterr().err


def test_a_run_that_was_stopped_ends_with_130(config, monkeypatch):
    """Whoever goes on after success (&&), or tries again until then, must not take it for a finished one."""
    original = Trainer.train_step

    def stopping(self, batches, stop=False):
        os.kill(os.getpid(), signal.SIGTERM) if self.step == 1 else None
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    assert (
        cli.main(["train", config, "training.max_steps=9", "--run-dir", "there"]) == 130
    )
    assert not Path("there/model").exists()
    assert (
        cli.main(["train", config, "training.max_steps=9", "--run-dir", "there"]) == 0
    )


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_run_folder_that_cannot_be_is_one_sentence(config, capsys, place):
    Path("file").write_text("mine")
    assert cli.main(["train", config, "--run-dir", place]) == 2
    err = capsys.readouterr().err
    assert err.startswith("slm: ") and err.count("\n") == 1 and place in err
    assert Path("file").read_text() == "mine"


def test_keyboard_interrupt_is_quiet(config, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("slm.training.run.train", interrupted)
    assert cli.main(["train", config]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        KeyError("a bug"),
        ZeroDivisionError("a bug"),
        ValueError("a bug"),
    ],
)
@pytest.mark.parametrize(
    "place", ["slm.training.run.train", "slm.training.config.load_config"]
)
def test_a_bug_keeps_its_traceback(config, monkeypatch, error, place):
    """Wherever it is raised: what it is, is said by its class."""

    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(place, broken)
    with pytest.raises(type(error), match="a bug"):
        cli.main(["train", config])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SlmError("the text is empty"), "the text is empty"),
        (SlmError("not saved", retry=True), "not saved"),
        (
            OSError(28, "No space left on device", "runs/x"),
            "No space left on device: runs/x",
        ),
        (OSError("no network"), "no network"),
        (
            MemoryError(),
            "the memory is full: choose a smaller work, or end other programs",
        ),
    ],
)
def test_a_mistake_is_one_sentence_wherever_it_is_raised(
    config, monkeypatch, capsys, error, told
):
    def broken(*arguments, **options):  # raised outside slm, as a test is
        raise error

    monkeypatch.setattr("slm.training.run.train", broken)
    assert cli.main(["train", config]) == 2
    assert capsys.readouterr().err == f"slm: {told}\n"


# ---------------------------------------------------------------- generate


def test_generate_prints_what_generate_gives(a_run, capsys):
    arguments = [
        "--max-tokens",
        "12",
        "--temperature",
        "0.7",
        "--top-k",
        "50",
        "--top-p",
        "0.9",
        "--seed",
        "4",
    ]
    assert cli.main(["generate", "runs/tiny", "Once upon", *arguments]) == 0
    expected = slm.generate(
        a_run.model,
        a_run.tokenizer,
        "Once upon",
        12,
        temperature=0.7,
        top_k=50,
        top_p=0.9,
        seed=4,
    )
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_the_terminal_cannot_show_is_replaced(encoding):
    code = "import sys; from slm import cli; cli._configs = lambda a: print('\\ufffd \\ud83d ok') or 0; "
    code += "sys.exit(cli.main(['configs']))"
    env = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding) in ("? ? ok\n", "\ufffd ? ok\n")


def test_generate_begins_a_text_without_a_prompt(a_run, capsys):
    assert cli.main(["generate", "runs/tiny", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_full_context_is_told_on_stderr(a_run, capsys):
    assert (
        cli.main(
            [
                "generate",
                "runs/tiny",
                "Once",
                "--max-tokens",
                "400",
                "--overflow",
                "slide",
            ]
        )
        == 0
    )
    assert capsys.readouterr().err == (
        "slm: the context of 32 tokens is full: the model now sees only the last part of the text (overflow='slide').\n"
    )


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--temperature", "-1"], "temperature = -1.0 is not allowed"),
        (["--top-p", "2"], "top_p = 2.0 is not allowed"),
        (["--top-k", "0"], "top_k = 0 is not allowed"),
        (["--max-tokens", "-5"], "max_tokens = -5 is not allowed"),
    ],
)
def test_a_wrong_argument_is_one_sentence(a_run, capsys, arguments, sentence):
    assert cli.main(["generate", "runs/tiny", "Once", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err


def test_a_prompt_that_is_too_long_is_one_sentence(a_run, capsys):
    assert cli.main(["generate", "runs/tiny", "Once upon a time " * 30]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "the model's context holds 32" in err
    assert "overflow='slide'" in err


def test_a_missing_run_is_one_sentence(capsys, tmp_path):
    assert cli.main(["generate", str(tmp_path / "nowhere"), "Once"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_gpt2_without_network_is_one_sentence(tmp_path, config):
    environment = {
        "TIKTOKEN_CACHE_DIR": str(tmp_path / "empty"),
        "PATH": "",
        "https_proxy": "http://127.0.0.1:9",
    }
    result = python(
        "-m",
        "slm",
        "train",
        config,
        "data.tokenizer=gpt2",
        "model.vocab_size=50257",
        env=environment,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert "TIKTOKEN_CACHE_DIR" in result.stderr
    assert "Traceback" not in result.stderr


# ---------------------------------------------------------------- cost


def test_cost_prints_a_table_and_its_assumptions(config, capsys):
    assert cli.main(["cost", config]) == 0
    out = capsys.readouterr().out
    assert cost.cost_table(slm.load_config(config)) in out
    assert str(cost.MODAL.date) in out and cost.ASSUMPTIONS in out


def test_cost_as_json_and_with_other_prices(config, capsys, tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        yaml.safe_dump(
            TypeAdapter(type(cost.MODAL)).dump_python(cost.MODAL, mode="json")
            | {"date": "2030-01-01"}
        )
    )
    assert cli.main(["cost", config, config, "--json", "--prices", str(path)]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert one == two
    assert one["prices"]["date"] == "2030-01-01"
    assert len(one["estimates"]) == len(cost.MODAL.gpus)


@pytest.mark.parametrize("name", ["nowhere.yaml", "tiny.yaml"])
def test_a_wrong_price_file_is_one_sentence(config, capsys, name):
    assert cli.main(["cost", config, "--prices", name]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("slm: ") and name in first  # a line for each mistake
    assert all(line.startswith(f"{name}: ") for line in others)


def test_cost_takes_overrides_for_every_config(config, capsys):
    assert (
        cli.main(
            ["cost", config, "training.max_steps=7", config, "--json", "modal.gpu=L4"]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [(row["steps"], row["gpu"]) for row in found] == [(7, "L4")] * 2


def test_cost_with_overrides_alone_is_one_sentence(config, capsys):
    assert cli.main(["cost", "training.max_steps=7"]) == 2
    err = capsys.readouterr().err
    assert "needs a config file" in err and err.count("\n") == 1


def test_train_asks_only_for_the_config(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert capsys.readouterr().err.endswith(
        "the following arguments are required: CONFIG\n"
    )


@pytest.mark.parametrize("unbuffered", [["-u"], []])
def test_a_reader_that_stops_reading_is_no_error(unbuffered):
    """As in `slm cost … | head`: no traceback, and the exit code that shells give to SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)  # before it begins, so that it can't have written all by then
    done = subprocess.run(
        [sys.executable, *unbuffered, "-m", "slm", "cost", "configs/gpt_124m.yaml"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={key: os.environ[key] for key in os.environ if key != "PYTHONUNBUFFERED"},
    )
    os.close(writer)
    assert done.stderr == b"" and done.returncode == 141


def test_a_pipe_that_breaks_in_the_work_is_told(config, monkeypatch, capsys):
    """As one to a process that reads or counts: nobody has stopped reading."""

    def broken(*arguments, **options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("slm.training.run.train", broken)
    assert cli.main(["train", config]) == 2
    assert capsys.readouterr().err == "slm: [Errno 32] Broken pipe\n"


def test_an_import_of_the_main_module_runs_nothing():
    code = "import sys; sys.argv = ['slm', '--version']; import slm.__main__; print(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


def test_a_price_is_counted_in_the_metrics(config, capsys):
    price = ["--dollars-per-hour", "3600"]
    assert cli.main(["train", config, "--run-dir", "priced", *price]) == 0
    rows = Path("priced/metrics.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        assert row["cost/usd"] == pytest.approx(row["seconds"])
