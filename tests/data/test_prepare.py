"""slm.data.prepare: token files, whole or not there, gone on with after a kill, made in parts."""

import errno
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from slm.data import prepare, stories
from slm.data.dataset import TokenDataset
from slm.data.tokenizer import Tokenizer, get_tokenizer
from slm.errors import SlmError

TOKENIZER = get_tokenizer("stories")
EOT = TOKENIZER.eot_token


def test_stories_file_holds_the_sampled_stories(
    cache: Path, read: Callable, documents: Callable, prepared: Callable
) -> None:
    path = prepared("stories", cache_dir=cache, max_documents=300)
    assert documents(path) == [stories.sample(seed) for seed in range(300)]
    about = json.loads(path.with_suffix(".json").read_text())
    assert (
        about["documents"] == 300
        and about["tokens"] == len(read(path))
        and about["dtype"] == "uint16"
    )
    assert about["tokenizer"] == {
        "name": "stories",
        "fingerprint": TOKENIZER.fingerprint,
        "eot_token": EOT,
    }
    assert (about["format"], about["split"], about["source"]) == (
        prepare.FORMAT,
        "train",
        "stories",
    )


def test_a_second_call_touches_nothing(cache: Path, prepared: Callable) -> None:
    first = prepared("stories", cache_dir=cache, max_documents=50)
    before = {
        file.name: file.stat().st_mtime_ns
        for file in cache.iterdir()
        if not file.name.endswith(".lock")
    }
    assert prepared("stories", cache_dir=cache, max_documents=50) == first
    after = {
        file.name: file.stat().st_mtime_ns
        for file in cache.iterdir()
        if not file.name.endswith(".lock")
    }
    assert before == after and len(before) == 2


def test_whatever_matters_makes_another_file(
    tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one two three\n\nfour five six\n" * 30)
    bytes_only = Tokenizer("bytes", {bytes([i]): i for i in range(256)})
    paths = [
        prepared(text, cache_dir=cache),
        prepared(text, "validation", cache_dir=cache),
        prepared(text, cache_dir=cache, val_fraction=0.3),
        prepared(text, cache_dir=cache, max_documents=1),
        prepared(text, tokenizer=bytes_only, cache_dir=cache),
    ]
    text.write_text("one two three\n\nfour five SIX\n" * 30)
    os.utime(text, ns=(1, 1))
    paths.append(prepared(text, cache_dir=cache))
    assert len(set(paths)) == len(paths)
    assert "SIX" in documents(paths[-1])[0] and "SIX" not in documents(paths[0])[0]


def test_the_name_of_a_tokenizer_does_not_matter(
    cache: Path, prepared: Callable
) -> None:
    renamed = Tokenizer("other", TOKENIZER.ranks)
    assert prepared("stories", cache_dir=cache, max_documents=9) == prepared(
        "stories", tokenizer=renamed, cache_dir=cache, max_documents=9
    )


def test_a_long_text_gets_the_ids_that_it_has_as_a_whole(
    tmp_path: Path, cache: Path, read: Callable, prepared: Callable
) -> None:
    text = "\n\n".join(stories.sample(seed) for seed in range(8000))
    assert len(text) > 2 << 20  # more than two blocks
    file, val = tmp_path / "train.txt", tmp_path / "val.txt"
    file.write_text(text)
    val.write_text("Something else.")
    assert read(prepared(file, cache_dir=cache)) == [EOT, *TOKENIZER.encode(text), EOT]


def test_a_cache_that_is_no_folder_is_one_sentence(
    tmp_path: Path, prepared: Callable, sentence: Callable
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SlmError) as error:
        prepared("stories", cache_dir=tmp_path / "file" / "cache", max_documents=9)
    assert "cannot be written to" in sentence(error)


# death, company and a full disk


PREPARE = """
import sys
from slm.data.corpus import DataConfig
from slm.data.prepare import prepare_tokens
from slm.data.tokenizer import get_tokenizer

data = DataConfig(sys.argv[1], cache_dir=sys.argv[2])
print(prepare_tokens(data, "train", get_tokenizer("stories")))
"""


@pytest.fixture
def large_text(tmp_path: Path) -> Path:
    file = tmp_path / "train.txt"
    file.write_text("\n\n".join(stories.sample(seed) for seed in range(2000)) * 8)
    (tmp_path / "val.txt").write_text("Something else.")
    return file


# goes no further than the middle of the text, and says when it is there
HELD = f"""
import itertools, os, time
from slm.data import prepare

os.cpu_count = lambda: 1
prepare.NOTE_SECONDS, encode, calls = -1.0, prepare._encode_pieces, itertools.count()

def held(*values):
    if next(calls) == 4:
        print("held", flush=True)
        time.sleep(300)
    return encode(*values)

prepare._encode_pieces = held
{PREPARE}
"""
BEGINS = PREPARE.replace("print(", "print('begins', flush=True)\nprint(")


def start_preparing(
    source: Path, cache: Path, code: str = PREPARE
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(source), str(cache)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )


KILL = """
import json, os, random, signal, sys, time
from pathlib import Path
from slm.data import prepare
from slm.data.corpus import DataConfig
from slm.data.tokenizer import get_tokenizer

source, cache, calm, seed, kills = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
tokenizer = get_tokenizer("stories")
prepare.NOTE_SECONDS = 0.0


def prepared(folder):
    data = DataConfig(source, cache_dir=str(folder))
    return prepare.prepare_tokens(data, "train", tokenizer)


began = time.monotonic()
right = prepared(calm)
whole = time.monotonic() - began
path = cache / right.name
draw, killed, went_on, finished = random.Random(seed), 0, 0, 0
while killed < kills or went_on < 5 and killed < 10 * kills:  # on a busy machine many come too early
    child = os.fork()
    if child == 0:
        prepared(cache)
        os._exit(0)
    began, pause, gone = time.monotonic(), draw.uniform(0, whole), 0
    while (took := time.monotonic() - began) < pause and not gone:
        time.sleep(0.002)
        gone, status = os.waitpid(child, os.WNOHANG)
    if not gone:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, "it failed by itself"
    noted = (cache / f".{path.name}.note").exists()
    killed += os.WIFSIGNALED(status)
    went_on += noted
    whole = took if status == 0 else whole if noted else 1.1 * whole  # by now it may be faster or slower
    if path.exists() and path.with_suffix(".json").exists():  # it counts, so it must be whole
        finished += 1
        assert path.read_bytes() == right.read_bytes()
        assert path.with_suffix(".json").read_bytes() == right.with_suffix(".json").read_bytes()
        path.unlink()
print(json.dumps([path.name, went_on, finished]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_twenty_times_and_finished_is_as_if_undisturbed(
    large_text: Path, tmp_path: Path, prepared: Callable
) -> None:
    source, folder, seed, kills = large_text, tmp_path, 0, 20
    cache, calm = folder / f"killed-{seed}", folder / f"calm-{seed}"
    command = [
        sys.executable,
        "-c",
        KILL,
        str(source),
        str(cache),
        str(calm),
        str(seed),
        str(kills),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    name, went_on, _ = json.loads(done.stdout)
    path = prepared(source, cache_dir=cache)
    assert path.name == name and path.read_bytes() == (calm / name).read_bytes()
    assert (
        path.with_suffix(".json").read_bytes()
        == (calm / name).with_suffix(".json").read_bytes()
    )
    assert sorted(file.suffix for file in cache.iterdir()) == [
        ".json",
        ".lock",
        ".tokens",
    ]
    assert went_on >= 5, "hardly any kill came in the middle"


class Interrupted(BaseException):
    """What stops a process between two instructions, such as Ctrl-C."""


@pytest.fixture
def interrupted(
    large_text: Path, cache: Path, prepared: Callable, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The unfinished file of a preparation that broke off after some batches, each of them noted."""
    encode, calls = prepare._encode_pieces, itertools.count()

    def break_off(pieces: object, tokenizer: Tokenizer) -> np.ndarray:
        if next(calls) == 4:
            raise Interrupted
        return encode(pieces, tokenizer)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "NOTE_SECONDS", -1.0)
        patch.setattr(os, "cpu_count", lambda: 1)
        patch.setattr(prepare, "_encode_pieces", break_off)
        with pytest.raises(Interrupted):
            prepared(large_text, cache_dir=cache)
    assert not list(cache.glob("*.tokens")) and not list(cache.glob("*.json"))
    (partial,) = cache.glob(".*.partial")
    return partial


def count_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each batch that is tokenized from now on."""
    calls: list[int] = []
    encode = prepare._encode_pieces
    monkeypatch.setattr(
        prepare,
        "_encode_pieces",
        lambda pieces, tokenizer: [calls.append(1), encode(pieces, tokenizer)][1],
    )
    return calls


def test_what_was_tokenized_is_not_tokenized_again(
    interrupted: Path,
    large_text: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Callable,
) -> None:
    (note,) = cache.glob(".*.note")
    noted = json.loads(note.read_text())["batches"]
    assert noted >= 2
    calls = count_batches(monkeypatch)
    path = prepared(large_text, cache_dir=cache)
    now = len(calls)
    fresh = prepared(large_text, cache_dir=cache.with_name("fresh"))
    assert noted + now == len(calls) - now
    assert path.read_bytes() == fresh.read_bytes()


def test_another_text_under_the_same_name_is_read_from_its_start(
    interrupted: Path, large_text: Path, cache: Path, read: Callable, prepared: Callable
) -> None:
    """As when a data set of the hub changed meanwhile: its name and revision are all that is known without a network."""
    times, text = large_text.stat(), large_text.read_text()
    changed = text.replace("a", "o", 1)
    large_text.write_text(changed)
    os.utime(large_text, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert read(prepared(large_text, cache_dir=cache)) == [
        EOT,
        *TOKENIZER.encode(changed),
        EOT,
    ]


@pytest.mark.parametrize(
    "damage", ["a changed byte", "cut off", "an unknown note", "half a note"]
)
def test_a_damaged_beginning_is_not_gone_on_with(
    damage: str,
    interrupted: Path,
    large_text: Path,
    cache: Path,
    read: Callable,
    prepared: Callable,
) -> None:
    partial = interrupted
    note = partial.with_suffix(".note")
    if damage == "a changed byte":
        with open(partial, "r+b") as file:
            file.seek(99)
            byte = file.read(1)[0]
            file.seek(99)
            file.write(bytes([byte ^ 1]))
    elif damage == "cut off":
        os.truncate(partial, 100)
    else:
        note.write_text(
            '{"place": 3}' if damage == "an unknown note" else note.read_text()[:20]
        )
    assert read(prepared(large_text, cache_dir=cache)) == [
        EOT,
        *TOKENIZER.encode(large_text.read_text()),
        EOT,
    ]
    assert not list(cache.glob(".*.note"))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_one_of_two_is_killed_and_the_other_finishes(
    large_text: Path, cache: Path, read: Callable
) -> None:
    first = start_preparing(large_text, cache, HELD)
    assert first.stdout and first.stdout.readline() == "held\n", first.communicate()
    (partial,) = cache.glob(".*.partial")
    assert partial.stat().st_size
    other = start_preparing(large_text, cache, BEGINS)
    assert other.stdout and other.stdout.readline() == "begins\n", other.communicate()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out, err = other.communicate(timeout=300)
    assert other.returncode == 0, err
    assert read(Path(out.strip())) == [
        EOT,
        *TOKENIZER.encode(large_text.read_text()),
        EOT,
    ]
    assert sorted(file.suffix for file in cache.iterdir()) == [
        ".json",
        ".lock",
        ".tokens",
    ]


def test_the_bar_tells_tokens_per_second(
    large_text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, prepared: Callable
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        prepare,
        "tqdm",
        lambda **options: tqdm(**{**options, "disable": False, "file": screen}),
    )
    prepared(large_text, cache_dir=cache)
    last = screen.getvalue().split("\r")[-1]
    assert re.search(r"100%.* [\d.]+ M tokens, [\d.]+ M tokens/s", last), last


def test_two_at_once_make_one_good_file(large_text: Path, cache: Path) -> None:
    processes = [start_preparing(large_text, cache) for _ in range(2)]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    path = Path(results[0][0].strip())
    TokenDataset(path, 64, tokenizer=TOKENIZER).verify()
    assert sorted(file.suffix for file in cache.iterdir()) == [
        ".json",
        ".lock",
        ".tokens",
    ]
    assert (
        "it/s" not in results[0][1] and "M tokens" not in results[0][1]
    )  # no progress bar where there is no terminal


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    large_text: Path, cache: Path
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
    command = [sys.executable, "-c", limit + PREPARE, str(large_text), str(cache)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last.startswith("slm.errors.SlmError: ")
        and "could not be written" in last
        and "cache_dir" in last
    )
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("call", ["fsync", "replace", "write_text"])
def test_a_disk_that_is_full_at_the_end_leaves_nothing(
    call: str,
    large_text: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable,
    prepared: Callable,
    sentence: Callable,
) -> None:
    """All tokens are written, and there is no room to keep them, for the sidecar, or for its text."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare if call == "write_text" else os, call, full)
        with pytest.raises(SlmError) as error:
            prepared(large_text, cache_dir=cache)
    assert "make room or choose another cache_dir" in sentence(error)
    assert error.value.retry
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    assert read(prepared(large_text, cache_dir=cache)) == [
        EOT,
        *TOKENIZER.encode(large_text.read_text()),
        EOT,
    ]
