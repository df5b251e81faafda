"""A run knows its tokenizer, its two texts and its token files; what was changed since is refused in a sentence."""

import json
import os
import shutil
from pathlib import Path

import pytest

from slm.cli import main
from slm.data import dataset, stories
from slm.data.dataset import TokenDataset
from slm.data.tokenizer import RANKS_FILE, Tokenizer, get_tokenizer
from slm.errors import SlmError
from slm.model.gpt import GPT
from slm.training.checkpoint import (
    CheckpointError,
    copy_to_cpu,
    load_checkpoint,
    save_checkpoint,
)
from slm.training.run import load_run, train


def other_tokenizer(n=1024):
    """The stories' tokens in another order, or only the first of them."""
    ranks = get_tokenizer("stories").ranks
    tokens = sorted(ranks, key=ranks.get)[: n - 1]
    ordered = tokens[:256] + tokens[256:][::-1]
    return Tokenizer("other", {token: rank for rank, token in enumerate(ordered)})


@pytest.fixture
def own(tmp_path, config):
    """A config of a tokenizer in a file, and of texts in a folder."""
    get_tokenizer("stories").save(tmp_path / "tokenizer")
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts/train.txt", 0)
    write(tmp_path / "texts/validation.txt", 400)
    data = {
        "dataset": str(tmp_path / "texts"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "max_documents": None,
        "packing": "stream",
        "cache_dir": str(tmp_path / "cache"),
    }
    return config(data=data)


def write(path, first):
    path.write_text("\n\n".join(stories.sample(first + seed) for seed in range(200)))


@pytest.mark.parametrize("n", [1024, 600])
def test_a_finished_run_whose_tokenizer_was_replaced_writes_nothing(
    tmp_path, config, capsys, n
):
    train(config(), run_dir=tmp_path / "run", verbose=False)
    other_tokenizer(n).save(tmp_path / "run/model")
    assert main(["generate", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    before, now = (get_tokenizer("stories").fingerprint, other_tokenizer(n).fingerprint)
    assert f"was trained with the tokenizer {before}, but " in printed.err
    assert f"run/model is now {now}: put that one back" in printed.err


def test_a_cut_tokenizer_is_another_one(tmp_path, config):
    train(config(), run_dir=tmp_path / "run", verbose=False)
    file = tmp_path / "run/model" / RANKS_FILE
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:900]))
    with pytest.raises(SlmError, match="was trained with the tokenizer"):
        load_run(tmp_path / "run")


def test_an_unfinished_run_whose_tokenizer_was_replaced_is_refused(
    tmp_path, own, interrupted
):
    run = tmp_path / "run"
    interrupted(own, run)
    other_tokenizer().save(tmp_path / "tokenizer")
    for read in (lambda: load_run(run), lambda: train(own, run_dir=run, verbose=False)):
        with pytest.raises(SlmError, match="was trained with the tokenizer"):
            read()
    assert len(list((tmp_path / "cache").glob("*.tokens"))) == 2  # none was made anew
    (run / "environment.json").unlink()  # the checkpoints know it, too
    with pytest.raises(CheckpointError, match="run with another tokenizer"):
        load_run(run)
    with pytest.raises(CheckpointError, match="run with another tokenizer"):
        train(own, run_dir=run, verbose=False)
    get_tokenizer("stories").save(tmp_path / "tokenizer")
    assert train(own, run_dir=run, verbose=False).finished


@pytest.mark.parametrize("content", ["", "[]", "5", '{"tokenizer": 5}', "\xff"])
def test_a_folder_that_does_not_tell_its_tokenizer_is_read(tmp_path, config, content):
    train(config(), run_dir=tmp_path / "run", verbose=False)
    (tmp_path / "run/environment.json").write_text(content, encoding="latin1")
    assert load_run(tmp_path / "run").finished


@pytest.mark.parametrize("content", ["", "{}", None])
def test_the_weights_of_a_finished_run_know_their_tokenizer_too(
    tmp_path, config, capsys, content
):
    train(config(), run_dir=tmp_path / "run")
    if content is None:
        (tmp_path / "run/environment.json").unlink()
    else:
        (tmp_path / "run/environment.json").write_text(content)
    load_run(tmp_path / "run")
    other_tokenizer().save(tmp_path / "run/model")
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "run")]) == 2
    printed, before = capsys.readouterr(), get_tokenizer("stories").fingerprint
    assert f"was trained with the tokenizer {before}, but " in printed.err
    assert not printed.out


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path, config):
    ids = Path(tmp_path, "small")
    other_tokenizer(600).save(ids)
    small = config(model={"vocab_size": 600}, data={"tokenizer": str(ids)})
    train(small, run_dir=tmp_path / "run", verbose=False)
    (tmp_path / "run/environment.json").unlink()
    weights = tmp_path / "run/model"  # of an earlier version, which do not tell
    GPT.from_pretrained(weights).save_pretrained(weights)
    get_tokenizer("stories").save(weights)
    with pytest.raises(SlmError, match="vocab_size = 600 is too small.* has 1024"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_text_that_changed_since_is_refused(tmp_path, own, interrupted, split):
    interrupted(own, tmp_path / "run")
    write(tmp_path / f"texts/{split}.txt", 800)
    name = {"train": "training"}.get(split, split)
    with pytest.raises(CheckpointError, match=f"run with another {name} text"):
        train(own, run_dir=tmp_path / "run", verbose=False)
    write(tmp_path / f"texts/{split}.txt", 0 if split == "train" else 400)
    assert train(own, run_dir=tmp_path / "run", verbose=False).finished


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path, own, interrupted):
    """It knows its training text only."""
    interrupted(own, tmp_path / "run")
    (tmp_path / "run/environment.json").unlink()
    for path in (tmp_path / "run/checkpoints").iterdir():
        state = copy_to_cpu(load_checkpoint(path))
        state["trainer"]["data"] = state["trainer"]["data"]["training text"]
        save_checkpoint(path, state)
    load_run(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert train(own, run_dir=tmp_path / "run", verbose=False).finished
    write(tmp_path / "texts/train.txt", 800)
    with pytest.raises(CheckpointError, match="run with another training text"):
        train(own, run_dir=tmp_path / "copy", verbose=False)


def flip_a_bit(path):
    """As a disk does it: neither size nor time change."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[1000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_flipped_bit_is_found_when_a_run_starts(tmp_path, own, monkeypatch, split):
    train(own, run_dir=tmp_path / "before", verbose=False)
    (path,) = (tmp_path / "cache").glob(f"*-{split}-*.tokens")
    flip_a_bit(path)
    monkeypatch.setattr(dataset, "_verified", set())  # as in another process
    with pytest.raises(SlmError, match=r"is damaged: .*delete it, and it is made anew"):
        train(own, run_dir=tmp_path / "run", verbose=False)
    path.unlink()
    assert train(own, run_dir=tmp_path / "run", verbose=False).finished


def test_a_file_is_verified_once_and_again_when_it_was_written(
    tmp_path, own, monkeypatch
):
    seen, real = [], TokenDataset.verify

    def verify(self):
        seen.append(self.path.name)
        real(self)

    monkeypatch.setattr(TokenDataset, "verify", verify)
    train(own, run_dir=tmp_path / "run", verbose=False)
    train(own, run_dir=tmp_path / "again", verbose=False)
    assert len(seen) == len(set(seen)) == 2
    (path,) = (tmp_path / "cache").glob("*-train-*.tokens")
    os.utime(path, (1, 1))
    train(own, run_dir=tmp_path / "third", verbose=False)
    assert seen[2:] == [path.name]


def test_a_file_that_is_too_large_to_be_verified_is_told(
    tmp_path, own, monkeypatch, capsys
):
    train(own, run_dir=tmp_path / "before", verbose=False)
    for path in (tmp_path / "cache").glob("*.tokens"):
        flip_a_bit(path)
    monkeypatch.setattr(dataset, "_verified", set())
    monkeypatch.setattr(dataset, "LARGE", 2000)
    train(own, run_dir=tmp_path / "run", verbose=False)
    told = capsys.readouterr().err
    assert told.count("its checksum is not compared; TokenDataset(…).verify()") == 2


@pytest.mark.parametrize(
    ("train_split", "val_split"),
    [("train", "train"), ("train", "training"), ("validation", "val")],
)
def test_a_run_is_not_judged_by_what_it_trains_on(config, train_split, val_split):
    told = f"data: val_split = '{val_split}' is trained on already"
    with pytest.raises(SlmError, match=told):
        config(data={"train_split": train_split, "val_split": val_split})


def test_what_a_run_keeps_of_its_text(tmp_path, own, interrupted):
    interrupted(own, tmp_path / "run")
    (newest, *_) = sorted((tmp_path / "run/checkpoints").iterdir(), reverse=True)
    kept = load_checkpoint(newest)["trainer"]["data"]
    assert kept.pop("tokenizer") == get_tokenizer("stories").fingerprint
    for name, split in (("training text", "train"), ("validation text", "validation")):
        (about,) = (tmp_path / "cache").glob(f"*-{split}-*.json")
        digest = json.loads(about.read_text())["tokens_sha256"]
        assert kept.pop(name) == digest[:16]
    assert not kept
