"""modal_app.py: what ends a call and what buys another attempt, and what goes back with the result."""

import contextlib
import errno
from types import SimpleNamespace

import pytest
import yaml

import modal_app
from slm.cloud import budget
from slm.errors import SlmError
from slm.training.config import load_config

TINY = yaml.safe_load("""
model: {vocab_size: 1024, context_length: 32, n_layers: 1, n_heads: 2, d_model: 16, d_ff: 32}
training: {batch_size: 4, learning_rate: 0.01, warmup_steps: 2, max_steps: 12, checkpoint_every: 4, eval_every: 12, threads: 1}
data: {dataset: stories, tokenizer: stories, max_documents: 200}
modal: {gpu: T4, timeout: 600, max_dollars: 1.0}
wandb: {enabled: false}
""")


@pytest.fixture
def text(tmp_path):
    """A small config as it travels."""
    data = {**TINY["data"], "cache_dir": str(tmp_path / "tokens")}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": data}))
    return load_config(path).to_yaml()


@pytest.fixture
def ended(monkeypatch):
    """Lets training end with an error; returns the list of the attempts."""
    tried = []

    def install(error):
        def train(config, run_dir, **rest):
            tried.append(run_dir)
            raise error

        monkeypatch.setattr("slm.training.run.train", train)
        return tried

    return install


@pytest.fixture
def in_a_container(monkeypatch):
    """As in a container; returns what was asked of the volume."""
    asked = []
    there = SimpleNamespace(
        commit=lambda: asked.append("commit"), reload=lambda: asked.append("reload")
    )
    monkeypatch.setattr(modal_app, "volume", there)
    monkeypatch.setattr(modal_app.modal, "is_local", lambda: False)
    return asked


# --- what no attempt can mend is never raised


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("max_steps: 12", "max_steps: 0"), "training.max_steps = 0"),
        (("gpu: T4", "gpu: T5"), "modal.gpu = 'T5'"),
        (("n_heads: 2", "n_heads: 3"), "n_heads"),
        (("model:", "modell:"), "modell is not a key"),
        (("model:", "- ["), "is not YAML"),
    ],
)
def test_wrong_config_ends_the_call(tmp_path, text, capsys, change, told):
    wrong = text.replace(*change)
    assert wrong != text
    result = modal_app.train.local(wrong, str(tmp_path / "run"))
    assert told in result["problem"] and not result["finished"]
    assert result["run"] == "run" and result["attempts"] == 0
    assert told in capsys.readouterr().out and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "run_dir",
    [
        "/data/runs",
        "/data/runs/.",
        "/data/x",
        "/tmp/x",
        "x",
        "",
        "/data/runs/../../etc/x",
    ],
)
def test_container_trains_in_no_other_folder(text, in_a_container, ended, run_dir):
    tried = ended(RuntimeError("boom"))
    result = modal_app.train.local(text, run_dir)
    assert result["problem"] and tried == [] and in_a_container == []


@pytest.mark.parametrize("name", ["attempts.json", "metrics.jsonl"])
def test_damaged_file_of_a_run_ends_the_call(tmp_path, text, name):
    folder = tmp_path / "run"
    modal_app.train.local(text, str(folder), budget=1e-9, rate=3.6)
    (folder / name).write_text("{damaged\n" + "{}\n" * (name == "metrics.jsonl"))
    result = modal_app.train.local(text, str(folder))
    assert name in result["problem"] and not result["finished"]


# --- what cannot be counted is not tried again


@pytest.mark.parametrize("error", [None, OSError(errno.ENOSPC, "No space left")])
def test_full_volume_ends_the_call_and_is_named(
    tmp_path, text, monkeypatch, ended, error
):
    """Where not even the count can be written, another attempt would know nothing."""

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    if error:
        ended(error)
    monkeypatch.setattr(budget, "write_text", full)
    result = modal_app.train.local(text, str(tmp_path / "run"))
    assert "No space left on device" in result["problem"] and not result["finished"]
    assert "the count could not be kept" in result["problem"]
    assert "modal.timeout" not in result["problem"]


def test_error_travels_although_its_count_cannot_be_kept(
    tmp_path, text, monkeypatch, ended
):
    ended(SlmError("step 4 was not saved: No space left", retry=True))
    kept, real = [], budget.write_text

    def full_at_the_end(path, content):
        if kept:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        kept.append(real(path, content))

    monkeypatch.setattr(budget, "write_text", full_at_the_end)
    result = modal_app.train.local(text, str(tmp_path / "run"))
    assert "step 4 was not saved: No space left" in result["problem"]
    assert "Disk quota exceeded" in result["problem"]


def test_interrupt_of_modal_stays_one_although_its_count_cannot_be_kept(
    tmp_path, text, monkeypatch, ended
):
    """Modal starts the call again on another machine, and takes no retry for it."""
    ended(KeyboardInterrupt())
    kept, real = [], budget.write_text

    def once(path, content):
        if kept:
            raise OSError("gone")
        kept.append(real(path, content))

    monkeypatch.setattr(budget, "write_text", once)
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(text, str(tmp_path / "run"))


# --- errors of this machine are no failed questions


@pytest.mark.parametrize("place", ["tempfile.mkdtemp", "modal_app.report"])
def test_error_of_the_disk_is_wrapped_wherever_it_comes_from(
    tmp_path, text, monkeypatch, place
):
    def broken(*values, **options):
        raise OSError("the disk is broken")

    monkeypatch.setattr(place, broken)
    with pytest.raises(RuntimeError, match="OSError: the disk is broken"):
        modal_app.train.local(text, str(tmp_path / "run"))


# --- a launch that stops after some steps


def test_run_that_stops_after_steps_goes_on_to_the_same_weights(tmp_path, text):
    for name in ("whole", "parts"):
        if name == "parts":
            first = modal_app.train.local(text, str(tmp_path / name), steps=7)
            assert (first["finished"], first["checkpoint"]) == (False, 7)
            assert first["problem"] == ""
        assert modal_app.train.local(text, str(tmp_path / name))["finished"]
    files = [tmp_path / name / "model/model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_attempt_that_was_lost_as_it_ended_is_not_trained_again(tmp_path, text, ended):
    """The step was saved, and then the machine was taken away: the call comes again."""
    run = str(tmp_path / "run")
    modal_app.train.local(text, run, steps=7)
    tried = ended(RuntimeError("boom"))
    again = modal_app.train.local(text, run, steps=7)
    assert (again["checkpoint"], again["problem"], tried) == (7, "", [])


def test_stop_before_the_steps_is_an_interrupt(tmp_path, text, monkeypatch):
    """A normal return would end the call at the wrong step."""

    def interrupted(config, run_dir, **rest):
        assert rest["steps"] == 7
        return SimpleNamespace(finished=False)

    monkeypatch.setattr("slm.training.run.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(text, str(tmp_path / "run"), steps=7)


# --- preparation and generation


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("function", ["prepare", "prepare_part"])
def test_preparation_is_tried_again_if_that_may_help(
    text, monkeypatch, in_a_container, function, retry
):
    def unreachable(*values, **options):
        raise SlmError("the server does not answer", retry=retry)

    monkeypatch.setattr("slm.data.tokenizer.get_tokenizer", unreachable)
    values = (text,) if function == "prepare" else (0, 1, "train", text)
    prepare = getattr(modal_app, function).local
    if retry:
        with pytest.raises(SlmError, match="does not answer") as raised:
            prepare(*values)
        assert raised.value.retry
    else:
        assert prepare(*values) == "the server does not answer"
    assert in_a_container == ["commit"]


def test_part_that_fails_in_all_its_attempts_ends_the_preparation(
    text, monkeypatch, in_a_container
):
    """An error that is raised would start it again, and with it all the parts."""

    def failed(ks, kwargs):
        yield ""
        raise RuntimeError("boom")

    monkeypatch.setattr("slm.data.prepare.count_shards", lambda *_: 100)
    monkeypatch.setattr(modal_app.prepare_part, "map", failed)
    told = modal_app.prepare.local(text)
    assert "a part of train was not prepared (RuntimeError: boom)" in told
    assert told.endswith("the same command goes on from there")
    assert in_a_container == ["commit"]


@pytest.mark.parametrize("function", ["prepare", "prepare_part"])
def test_preparation_of_a_wrong_config_is_a_sentence(text, in_a_container, function):
    values = ("{",) if function == "prepare" else (0, 1, "train", "{")
    assert "is not YAML" in getattr(modal_app, function).local(*values)


def test_preparation_raises_no_error_that_looks_like_a_failed_question(
    text, monkeypatch, in_a_container
):
    def full(*values, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("slm.data.prepare.prepare_tokens", full)
    with pytest.raises(RuntimeError, match="No space left"):
        modal_app.prepare_part.local(0, 1, "train", text)


def test_generate_looks_at_the_volume_as_it_is_now(monkeypatch, in_a_container):
    """A container that has served a call still sees what it saw then."""
    run = SimpleNamespace(model="weights", tokenizer="tokens")

    def load_run(path):
        in_a_container.append(str(path))
        return run

    monkeypatch.setattr("slm.training.run.load_run", load_run)
    monkeypatch.setattr("slm.generation.generate", lambda *_, **__: "Once upon")
    assert modal_app.generate.local("x") == "Once upon"
    assert in_a_container == ["reload", "/data/runs/x"]


# --- commands


def test_interrupted_command_ends_with_130_and_without_a_traceback(capsys):
    @modal_app.in_a_sentence
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        interrupted()
    assert stop.value.code == 130 and capsys.readouterr().err == "Stopped.\n"


def test_ranks_are_told_the_price_and_the_steps(
    tmp_path, text, monkeypatch, in_a_container
):
    told = []
    monkeypatch.setattr(
        modal_app, "train_on_ranks", lambda *_, **rest: told.append(rest)
    )
    config = load_config(modal_app.unpack(text.replace("T4", "H100:2"), "tiny"))
    meter = budget.Meter(tmp_path, 31.6)
    with contextlib.suppress(KeyboardInterrupt):
        modal_app.attempt(config, str(tmp_path), meter, 5)
    assert (told[0]["dollars_per_hour"], told[0]["steps"]) == (31.6, 5)
