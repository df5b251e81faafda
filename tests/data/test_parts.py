"""slm.data.prepare: a corpus in parts, joined into the undivided file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slm.data import prepare, stories
from slm.data.tokenizer import get_tokenizer
from slm.errors import SlmError

TOKENIZER = get_tokenizer("stories")
EOT = TOKENIZER.eot_token


@pytest.fixture
def many(tmp_path: Path, write_rows: Callable) -> Path:
    """A folder of files of three kinds: one without any text, and one large enough to be cut into pieces."""
    folder = tmp_path / "many"
    folder.mkdir()
    rows = [[stories.sample(100 * i + j) for j in range(20 + 10 * i)] for i in range(4)]
    write_rows(folder, "jsonl", rows[0]).rename(folder / "a.jsonl")
    write_rows(folder, "parquet", rows[1]).rename(folder / "c.parquet")
    write_rows(folder, "jsonl", rows[2]).rename(folder / "e.jsonl")
    (folder / "b.jsonl").write_text('{"text": null}\n')
    (folder / "d.txt").write_text("\n\n".join(rows[3] * 40))
    (folder / "f.txt").write_text("The last one.\nIt ends here.")
    return folder


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_joined_parts_are_the_undivided_file(
    n: int,
    split: str,
    many: Path,
    tmp_path: Path,
    documents: Callable,
    prepared: Callable,
    joined: Callable,
    same: Callable,
) -> None:
    right, cache = (
        prepared(many, split, cache_dir=tmp_path / "whole"),
        tmp_path / "parts",
    )
    parts = [
        prepared(many, split, cache_dir=cache, part=(k, n)) for k in reversed(range(n))
    ]
    assert len(set(parts)) == n and right.name not in {part.name for part in parts}
    assert sum(
        json.loads(part.with_suffix(".json").read_text())["documents"] for part in parts
    ) == len(documents(right))
    joined = joined(n, many, split, cache_dir=cache)
    assert same(joined, right)
    assert {file.suffix for file in cache.iterdir()} == {".tokens", ".json", ".lock"}
    assert len(list(cache.iterdir())) == 3  # no part is left
    assert (
        prepared(many, split, cache_dir=cache)
        == joined
        == prepared(many, split, cache_dir=cache, part=(0, n))
    )


@pytest.mark.parametrize("split", ["train", "validation"])
def test_text_files_held_out_whole_are_the_same_in_parts(
    split: str, tmp_path: Path, prepared: Callable, joined: Callable, same: Callable
) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(12):
        (tmp_path / "texts" / f"{i:02}.txt").write_text(stories.sample(i))
    right = prepared(
        tmp_path / "texts", split, cache_dir=tmp_path / "whole", val_fraction=0.25
    )
    for k in range(5):
        prepared(
            tmp_path / "texts",
            split,
            cache_dir=tmp_path,
            val_fraction=0.25,
            part=(k, 5),
        )
    assert same(
        joined(5, tmp_path / "texts", split, cache_dir=tmp_path, val_fraction=0.25),
        right,
    )


def test_a_part_that_is_there_is_not_made_again(
    many: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, prepared: Callable
) -> None:
    part = prepared(many, cache_dir=cache, part=(1, 3))
    monkeypatch.setattr(prepare, "_write_tokens", lambda *_: pytest.fail("made again"))
    assert prepared(many, cache_dir=cache, part=(1, 3)) == part


def test_a_missing_part_is_named(
    many: Path, cache: Path, prepared: Callable, sentence: Callable, joined: Callable
) -> None:
    for k in (0, 2):
        prepared(many, cache_dir=cache, part=(k, 4))
    with pytest.raises(SlmError) as error:
        joined(4, many, "train", cache_dir=cache)
    assert "cannot be joined of 4 parts" in sentence(error) and "(1, 3)" in str(
        error.value
    )
    assert len(list(cache.glob("*.part-*.tokens"))) == 2 and not list(
        cache.glob("*train-????????????.tokens")
    )


def test_a_damaged_part_is_named(
    many: Path,
    cache: Path,
    prepared: Callable,
    sentence: Callable,
    joined: Callable,
    same: Callable,
) -> None:
    parts = [prepared(many, cache_dir=cache, part=(k, 2)) for k in range(2)]
    content = bytearray(parts[1].read_bytes())
    content[10] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(SlmError) as error:
        joined(2, many, "train", cache_dir=cache)
    assert parts[1].name in sentence(error) and "damaged" in str(error.value)
    parts[1].unlink()
    prepared(many, cache_dir=cache, part=(1, 2))
    assert same(
        joined(2, many, "train", cache_dir=cache),
        prepared(many, cache_dir=cache / "whole"),
    )


def test_what_cannot_be_divided_is_refused(
    many: Path,
    tmp_path: Path,
    cache: Path,
    prepared: Callable,
    sentence: Callable,
    joined: Callable,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "train.jsonl").write_text("{}\n".replace("{}", '{"text": ""}'))
    (empty / "val.jsonl").write_text('{"text": "v"}\n')
    prepared(empty, cache_dir=cache, part=(0, 1))
    cases = [
        (
            lambda: prepared("stories", cache_dir=cache, part=(0, 2)),
            "stories cannot be divided",
        ),
        (
            lambda: prepared(many, cache_dir=cache, part=(0, 2), max_documents=5),
            "max_documents",
        ),
        (lambda: prepared(many, cache_dir=cache, part=(2, 2)), "from 0 to n - 1"),
        (lambda: joined(0, many, "train", cache_dir=cache), "at least 1"),
        (lambda: joined(1, empty, "train", cache_dir=cache), "holds no text"),
    ]
    for call, words in cases:
        with pytest.raises(SlmError) as error:
            call()
        assert words in sentence(error)


def test_parts_are_counted(
    many: Path, cache: Path, prepared: Callable, shards: Callable
) -> None:
    assert shards(many, "train", cache_dir=cache) == 6
    assert shards(many, "train", cache_dir=cache, max_documents=5) == 1
    assert shards("stories", "train", cache_dir=cache) == 1
    (many / "val.txt").write_text("Held out.")
    assert [shards(many, split, cache_dir=cache) for split in ("train", "val")] == [
        6,
        1,
    ]
    prepared(many, cache_dir=cache)
    assert shards(many, "train", cache_dir=cache) == 1  # nothing is left to do


KILL_PARTS = """
import os, signal, sys, time
from pathlib import Path
from slm.data import prepare as data
from slm.data.corpus import DataConfig
from slm.data.tokenizer import get_tokenizer

cache = Path(sys.argv[2])
config = DataConfig(sys.argv[1], cache_dir=sys.argv[2])
tokenizer = get_tokenizer("stories")
data.NOTE_SECONDS = 0.0


def prepare():
    return data.prepare_tokens(config, "train", tokenizer, part=(1, 2))


def join():
    data.prepare_tokens(config, "train", tokenizer, part=(0, 2))
    data.join_tokens(config, "train", tokenizer, 2)


for task, replaced in ((prepare, "publish"), (join, "publish"), (prepare, None), (join, None)):
    child = os.fork()
    if child == 0:
        if replaced:  # all is written, and nothing has its name yet
            if task is join:
                prepare()
                data.prepare_tokens(config, "train", tokenizer, part=(0, 2))
            setattr(data, replaced, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        task()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (replaced is not None), (task, replaced, status)
    whole = [file for file in cache.glob("*.tokens") if ".part-" not in file.name]
    assert len(whole) == (task is join and replaced is None)
"""


def test_a_killed_part_and_a_killed_join_are_gone_on_with(
    many: Path, tmp_path: Path, cache: Path, prepared: Callable, same: Callable
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL_PARTS, str(many), str(cache)],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    right = prepared(many, cache_dir=tmp_path / "whole")
    assert same(cache / right.name, right)
    assert sorted(file.suffix for file in cache.iterdir()) == [
        ".json",
        ".lock",
        ".tokens",
    ]
