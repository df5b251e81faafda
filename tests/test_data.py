"""slm.data: rows and targets, token files and what can go wrong with them, splits, and the order of batches."""

import csv
import errno
import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from slm import data, stories
from slm.data import (
    DataError,
    TextDataset,
    TokenDataset,
    TokenLoader,
    count_shards,
    create_dataloader,
    join_tokens,
    prepare_tokens,
)
from slm.tokenizer import Tokenizer, get_tokenizer

TOKENIZER = get_tokenizer("stories")
EOT = TOKENIZER.eot_token


def read(path: Path) -> list[int]:
    about = json.loads(path.with_suffix(".json").read_text())
    return np.fromfile(path, dtype=about["dtype"]).tolist()


def documents(path: Path) -> list[str]:
    """The documents of a token file, decoded."""
    ids = read(path)
    assert ids[0] == ids[-1] == EOT
    parts = [list(group) for is_end, group in itertools.groupby(ids, lambda i: i == EOT) if not is_end]
    return [TOKENIZER.decode(part) for part in parts]


def prepared(source: object, split: str = "train", **options: object) -> Path:
    return prepare_tokens(source, split, TOKENIZER, **options)  # type: ignore[arg-type]


def sentence(error: pytest.ExceptionInfo[DataError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith("."), text
    return text


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# rows


@pytest.mark.parametrize("T", [1, 3, 8, 50])
def test_stream_rows_are_slices_and_each_token_is_a_target_once(T: int) -> None:
    texts = [stories.sample(seed) for seed in range(5)]
    strip = [i for text in texts for i in [EOT, *TOKENIZER.encode(text)]] + [EOT]
    dataset = TextDataset(texts, TOKENIZER, T)
    assert len(dataset) == (len(strip) - 1) // T
    for i in range(len(dataset)):
        x, y = dataset[i]
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (T,)
        assert x.tolist() == strip[i * T : i * T + T]
        assert y.tolist() == strip[i * T + 1 : i * T + T + 1]
    targets = torch.cat([y for _, y in dataset]).tolist()
    assert targets == strip[1 : 1 + len(dataset) * T] and len(strip) - 1 - len(targets) < T


def naive_packing(strip: list[int], T: int, eot: int) -> list[tuple[list[int], list[int]]]:
    """Whole documents into rows, one at a time, by the definition."""
    rows, start, end = [], 0, len(strip) - 1
    while start < end:
        stop = max((i for i in range(start + 1, min(start + T, end) + 1) if strip[i] == eot), default=start + T)
        fill = T - (stop - start)
        rows.append((strip[start:stop] + [eot] * fill, strip[start + 1 : stop + 1] + [-100] * fill))
        start = stop
    return rows


@pytest.mark.parametrize("T", [1, 2, 7, 16, 64])
@pytest.mark.parametrize("seed", range(4))
def test_document_rows_equal_the_definition(T: int, seed: int) -> None:
    draw = random.Random(seed)
    strip = [0]
    for _ in range(draw.choice([1, 2, 40])):
        strip += [draw.randrange(1, 9) for _ in range(draw.choice([1, 3, T, T - 1 or 1, 2 * T, 5 * T + 3]))] + [0]
    dataset = data.RowDataset(np.array(strip), T, 0, "documents", "strip")
    rows = [(x.tolist(), y.tolist()) for x, y in dataset]
    assert rows == naive_packing(strip, T, 0)
    assert [t for _, y in rows for t in y if t != -100] == strip[1:]


def test_a_text_cannot_forge_the_end_of_text() -> None:
    text = "One<|endoftext|>Two and then some more words to fill a row."
    x, _ = TextDataset([text], TOKENIZER, 20)[0]
    assert x[0] == EOT and (x[1:] != EOT).all()
    assert text.startswith(TOKENIZER.decode(x[1:].tolist()))


def test_many_rows_at_once_and_negative_or_missing_rows() -> None:
    dataset = TextDataset([stories.sample(0)], TOKENIZER, 8)
    x, y = dataset.rows(np.array([2, 0, 2]))
    assert x.shape == y.shape == (3, 8) and x.is_contiguous() and y.is_contiguous()
    assert torch.equal(x[0], x[2]) and torch.equal(x[1], dataset[0][0])
    assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_rows_work_in_a_default_dataloader() -> None:
    batches = list(torch.utils.data.DataLoader(TextDataset([stories.sample(0)], TOKENIZER, 8), batch_size=4))
    assert batches[0][0].shape == (4, 8) and torch.equal(batches[0][0][0, 1:], batches[0][1][0, :-1])


# token files


def test_stories_file_holds_the_sampled_stories(cache: Path) -> None:
    path = prepared("stories", cache_dir=cache, max_documents=300)
    assert documents(path) == [stories.sample(seed) for seed in range(300)]
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["documents"] == 300 and about["tokens"] == len(read(path)) and about["dtype"] == "uint16"
    assert about["tokenizer"] == {"name": "stories", "fingerprint": TOKENIZER.fingerprint, "eot_token": EOT}
    assert (about["format"], about["split"], about["source"]) == (1, "train", "stories")


def test_train_and_validation_stories_have_nothing_in_common(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [stories.sample(seed) for seed in range(40)]  # a corpus in which seeds give the same story again and again
    monkeypatch.setattr(stories, "sample", lambda seed: few[(seed * 7919 + seed // 10**9) % 40])
    train = documents(prepared("stories", cache_dir=cache, max_documents=20))
    validation = documents(prepared("stories", "validation", cache_dir=cache, max_documents=20))
    assert len(train) == len(validation) == 20
    assert not set(train) & set(validation)


def test_defaults_of_the_stories(cache: Path) -> None:
    sizes = data.StorySource(None).sizes
    assert sizes == {"train": 30_000, "validation": 1_000}
    assert len(documents(prepared("stories", "val", cache_dir=cache))) == 1_000


def test_a_second_call_touches_nothing(cache: Path) -> None:
    first = prepared("stories", cache_dir=cache, max_documents=50)
    before = {file.name: file.stat().st_mtime_ns for file in cache.iterdir() if not file.name.endswith(".lock")}
    assert prepared("stories", cache_dir=cache, max_documents=50) == first
    after = {file.name: file.stat().st_mtime_ns for file in cache.iterdir() if not file.name.endswith(".lock")}
    assert before == after and len(before) == 2


def test_whatever_matters_makes_another_file(tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one two three\n\nfour five six\n" * 30)
    bytes_only = Tokenizer("bytes", {bytes([i]): i for i in range(256)})
    paths = [
        prepared(text, cache_dir=cache),
        prepared(text, "validation", cache_dir=cache),
        prepared(text, cache_dir=cache, val_fraction=0.3),
        prepared(text, cache_dir=cache, max_documents=1),
        prepare_tokens(text, "train", bytes_only, cache),
    ]
    text.write_text("one two three\n\nfour five SIX\n" * 30)
    os.utime(text, ns=(1, 1))
    paths.append(prepared(text, cache_dir=cache))
    assert len(set(paths)) == len(paths)
    assert "SIX" in documents(paths[-1])[0] and "SIX" not in documents(paths[0])[0]


def test_the_name_of_a_tokenizer_does_not_matter(cache: Path) -> None:
    renamed = Tokenizer("other", TOKENIZER.ranks)
    assert prepared("stories", cache_dir=cache, max_documents=9) == prepare_tokens(
        "stories", "train", renamed, cache, max_documents=9
    )


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, cache: Path) -> None:
    ranks = {bytes([i]): i for i in range(256)}
    for first, second in itertools.product(range(256), repeat=2):
        ranks[bytes([first, second])] = len(ranks)
    large = Tokenizer("large", ranks)
    text = tmp_path / "a.txt"
    text.write_text("zzzz yyyy " * 40 + "\nend\n")
    path = prepare_tokens(text, "train", large, cache)
    tokens = np.fromfile(path, dtype=np.uint32)
    assert json.loads(path.with_suffix(".json").read_text())["dtype"] == "uint32" and large.n_vocab > 65536
    assert text.read_text().startswith(large.decode(tokens[1:-1].tolist()))
    x, _ = TokenDataset(path, 8, tokenizer=large)[0]
    assert x.tolist() == tokens[:8].tolist()


# text files


@pytest.mark.parametrize(
    "text",
    [
        "A paragraph of words.\n\n" * 200,
        "A paragraph of words.\r\n\r\n" * 200,
        "One line after another.\n" * 200,
        "no line end at all " * 200,
        "日本語のテキスト" * 300,
        "🙂🙃" * 300,
    ],
)
def test_one_long_text_is_cut_into_a_head_and_a_tail(text: str, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_bytes(text.encode())
    (train,) = documents(prepared(file, cache_dir=cache))
    (validation,) = documents(prepared(file, "validation", cache_dir=cache))
    assert train + validation == text
    assert 0.08 <= len(validation) / len(text) <= 0.1
    if "\n" in text:
        assert train.endswith("\n")
    if "\n\n" in text:
        assert train.endswith("\n\n")


def test_a_long_text_gets_the_ids_that_it_has_as_a_whole(tmp_path: Path, cache: Path) -> None:
    text = "\n\n".join(stories.sample(seed) for seed in range(8000))
    assert len(text) > 2 << 20  # more than two blocks
    file, val = tmp_path / "train.txt", tmp_path / "val.txt"
    file.write_text(text)
    val.write_text("Something else.")
    assert read(prepared(file, cache_dir=cache)) == [EOT, *TOKENIZER.encode(text), EOT]


def test_pieces_of_anything_give_the_ids_of_the_whole() -> None:
    draw = random.Random(0)
    alphabet = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        " \n ",
        "\u00a0",
        "\u3000",
        "a",
        "The",
        "isn't",
        "42",
        "...",
        "日本",
        "🙂",
        "é",
    ]
    for _ in range(300):
        text = "".join(draw.choices(alphabet, k=draw.randrange(1, 60))) + " end"
        size = draw.randrange(4, 40)
        blocks = [text[i : i + size] for i in range(0, len(text), size)]
        pieces = list(data.split_pieces(blocks))
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.starts for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        if all(any(a in " \n" and not b.isspace() for a, b in itertools.pairwise(block)) for block in blocks[:-1]):
            assert data.encode(pieces, TOKENIZER)[1:].tolist() == TOKENIZER.encode(text), repr(text)


def test_a_block_without_a_space_is_still_read(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("x" * (1 << 20) + "y" * 100_000 + " end")
    train, validation = prepared(file, cache_dir=cache), prepared(file, "validation", cache_dir=cache)
    assert documents(train)[0] + documents(validation)[0] == file.read_text()


def test_a_byte_order_mark_is_no_text(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "bom.txt"
    file.write_bytes(b"\xef\xbb\xbf" + b"Some words.\n" * 50)
    assert documents(prepared(file, cache_dir=cache))[0].startswith("Some")


def test_few_text_files_are_each_cut_and_many_are_split_whole(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"File {i}.\n" * 20)
    few = prepared(str(folder / "[0-2].txt"), "validation", cache_dir=cache)
    assert [text.split("\n")[0] for text in documents(few)] == ["File 0.", "File 1.", "File 2."]
    train, validation = (
        documents(prepared(folder, cache_dir=cache)),
        documents(prepared(folder, "validation", cache_dir=cache)),
    )
    assert len(train) == 18 and len(validation) == 2
    assert Counter(train + validation) == Counter(file.read_text() for file in folder.iterdir())


def test_files_named_for_a_split_are_that_split(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "my_train.txt").write_text("Train. " * 30)
    (tmp_path / "my_valid.txt").write_text("Valid. " * 30)
    (tmp_path / "my_test.txt").write_text("Test. " * 30)
    for source in (tmp_path, tmp_path / "my_train.txt"):
        assert documents(prepared(source, cache_dir=cache)) == ["Train. " * 30]
        assert documents(prepared(source, "validation", cache_dir=cache)) == ["Valid. " * 30]
    assert documents(prepared(tmp_path, "test", cache_dir=cache)) == ["Test. " * 30]


# rows with a text column


def write_rows(folder: Path, kind: str, texts: list[str]) -> Path:
    file = folder / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), file, row_group_size=100)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_split_by_content(kind: str, tmp_path: Path, cache: Path) -> None:
    texts = [stories.sample(seed) for seed in [*range(400), *range(200)]]  # half of them twice
    file = write_rows(tmp_path, kind, texts)
    train, validation = (
        documents(prepared(file, cache_dir=cache)),
        documents(prepared(file, "validation", cache_dir=cache)),
    )
    assert Counter(train + validation) == Counter(texts)
    assert not set(train) & set(validation)
    assert 0.05 < len(validation) / len(texts) < 0.15
    assert train == [text for text in texts if text in set(train)]  # in the order of the file
    first = documents(prepared(file, cache_dir=cache, max_documents=7))
    assert first == train[:7]


@pytest.mark.parametrize("rows_per_group", [500, 50_000])
def test_a_parquet_file_is_read_in_constant_memory(rows_per_group: int, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [random.Random(i).randbytes(1500).hex() for i in range(10_000)]  # 30 MB
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=rows_per_group)
    code = (
        "import sys, pyarrow; from pathlib import Path; from slm import data\n"
        "rows = data._read_parquet(Path(sys.argv[1]), 'text', lambda share: None)\n"
        "print(sum(len(row['text']) for _, row in rows), pyarrow.default_memory_pool().max_memory())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    read, peak = map(int, subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout.split())
    assert read == 30_000_000 and peak < 20e6


def test_a_folder_may_mix_kinds(tmp_path: Path, cache: Path) -> None:
    write_rows(tmp_path, "jsonl", ["from jsonl"])
    write_rows(tmp_path, "parquet", ["from parquet"])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("from text")
    (tmp_path / "validation.txt").write_text("held out")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "ignored.csv").write_text("not read")
    assert documents(prepared(tmp_path, cache_dir=cache)) == ["from text", "from jsonl", "from parquet"]


def test_half_a_surrogate_pair_null_and_empty_texts(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"text": "a \\ud83d b"}\n\n{"text": ""}\n{"text": null}\n{"text": "c"}\n')
    (tmp_path / "val.jsonl").write_text('{"text": "v"}\n')
    assert documents(prepared(file, cache_dir=cache)) == ["a \ufffd b", "c"]


# parts


def same(path: Path, right: Path) -> bool:
    """Whether two token files and their sidecars are the same, names and bytes."""
    pairs = [(path, right), (path.with_suffix(".json"), right.with_suffix(".json"))]
    return all((a.name, a.read_bytes()) == (b.name, b.read_bytes()) for a, b in pairs)


@pytest.fixture
def many(tmp_path: Path) -> Path:
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
def test_joined_parts_are_the_undivided_file(n: int, split: str, many: Path, tmp_path: Path) -> None:
    right, cache = prepared(many, split, cache_dir=tmp_path / "whole"), tmp_path / "parts"
    parts = [prepared(many, split, cache_dir=cache, part=(k, n)) for k in reversed(range(n))]
    assert len(set(parts)) == n and right.name not in {part.name for part in parts}
    assert sum(json.loads(part.with_suffix(".json").read_text())["documents"] for part in parts) == len(
        documents(right)
    )
    joined = join_tokens(n, many, split, TOKENIZER, cache)
    assert same(joined, right)
    assert {file.suffix for file in cache.iterdir()} == {".tokens", ".json", ".lock"}
    assert len(list(cache.iterdir())) == 3  # no part is left
    assert prepared(many, split, cache_dir=cache) == joined == prepared(many, split, cache_dir=cache, part=(0, n))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_text_files_held_out_whole_are_the_same_in_parts(split: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(12):
        (tmp_path / "texts" / f"{i:02}.txt").write_text(stories.sample(i))
    right = prepared(tmp_path / "texts", split, cache_dir=tmp_path / "whole", val_fraction=0.25)
    for k in range(5):
        prepared(tmp_path / "texts", split, cache_dir=tmp_path, val_fraction=0.25, part=(k, 5))
    assert same(join_tokens(5, tmp_path / "texts", split, TOKENIZER, tmp_path, val_fraction=0.25), right)


def test_a_part_that_is_there_is_not_made_again(many: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = prepared(many, cache_dir=cache, part=(1, 3))
    monkeypatch.setattr(data, "_write_tokens", lambda *_: pytest.fail("made again"))
    assert prepared(many, cache_dir=cache, part=(1, 3)) == part


def test_a_missing_part_is_named(many: Path, cache: Path) -> None:
    for k in (0, 2):
        prepared(many, cache_dir=cache, part=(k, 4))
    with pytest.raises(DataError) as error:
        join_tokens(4, many, "train", TOKENIZER, cache)
    assert "cannot be joined of 4 parts" in sentence(error) and "(1, 3)" in str(error.value)
    assert len(list(cache.glob("*.part-*.tokens"))) == 2 and not list(cache.glob("*train-????????????.tokens"))


def test_a_damaged_part_is_named(many: Path, cache: Path) -> None:
    parts = [prepared(many, cache_dir=cache, part=(k, 2)) for k in range(2)]
    content = bytearray(parts[1].read_bytes())
    content[10] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(DataError) as error:
        join_tokens(2, many, "train", TOKENIZER, cache)
    assert parts[1].name in sentence(error) and "damaged" in str(error.value)
    parts[1].unlink()
    prepared(many, cache_dir=cache, part=(1, 2))
    assert same(join_tokens(2, many, "train", TOKENIZER, cache), prepared(many, cache_dir=cache / "whole"))


def test_what_cannot_be_divided_is_refused(many: Path, tmp_path: Path, cache: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "train.jsonl").write_text("{}\n".replace("{}", '{"text": ""}'))
    (empty / "val.jsonl").write_text('{"text": "v"}\n')
    prepared(empty, cache_dir=cache, part=(0, 1))
    cases = [
        (lambda: prepared("stories", cache_dir=cache, part=(0, 2)), "stories cannot be divided"),
        (lambda: prepared(many, cache_dir=cache, part=(0, 2), max_documents=5), "max_documents"),
        (lambda: prepared(many, cache_dir=cache, part=(2, 2)), "from 0 to n - 1"),
        (lambda: join_tokens(0, many, "train", TOKENIZER, cache), "at least 1"),
        (lambda: join_tokens(1, empty, "train", TOKENIZER, cache), "holds no text"),
    ]
    for call, words in cases:
        with pytest.raises(DataError) as error:
            call()
        assert words in sentence(error)


def test_parts_are_counted(many: Path, cache: Path) -> None:
    assert count_shards(many, "train", TOKENIZER, cache) == 6
    assert count_shards(many, "train", TOKENIZER, cache, max_documents=5) == 1
    assert count_shards("stories", "train", TOKENIZER, cache) == 1
    (many / "val.txt").write_text("Held out.")
    assert [count_shards(many, split, TOKENIZER, cache) for split in ("train", "val")] == [6, 1]
    prepared(many, cache_dir=cache)
    assert count_shards(many, "train", TOKENIZER, cache) == 1  # nothing is left to do


KILL_PARTS = """
import os, signal, sys, time
from pathlib import Path
from slm import data
from slm.tokenizer import get_tokenizer

source, cache = sys.argv[1], Path(sys.argv[2])
tokenizer = get_tokenizer("stories")
data.NOTE_SECONDS = 0.0


def prepare():
    return data.prepare_tokens(source, "train", tokenizer, cache, part=(1, 2))


def join():
    data.prepare_tokens(source, "train", tokenizer, cache, part=(0, 2))
    data.join_tokens(2, source, "train", tokenizer, cache)


for task, replaced in ((prepare, "_give_name"), (join, "_give_name"), (prepare, None), (join, None)):
    child = os.fork()
    if child == 0:
        if replaced:  # all is written, and nothing has its name yet
            if task is join:
                prepare()
                data.prepare_tokens(source, "train", tokenizer, cache, part=(0, 2))
            setattr(data, replaced, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        task()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (replaced is not None), (task, replaced, status)
    whole = [file for file in cache.glob("*.tokens") if ".part-" not in file.name]
    assert len(whole) == (task is join and replaced is None)
"""


def test_a_killed_part_and_a_killed_join_are_gone_on_with(many: Path, tmp_path: Path, cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL_PARTS, str(many), str(cache)], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    right = prepared(many, cache_dir=tmp_path / "whole")
    assert same(cache / right.name, right)
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".lock", ".tokens"]


# the hub, through `datasets` on local files


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for any data set of the hub: everything but the download is the real path."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(data, "_hub_answers", lambda: True)
    load, folder = datasets.load_dataset, tmp_path / "corpus"
    folder.mkdir()

    def from_folder(repository: str, config: str | None, revision: str | None, streaming: bool) -> object:
        assert (repository, config, revision) == ("owner/corpus", None, "v1")
        return load(str(folder), streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_without_validation_is_split_by_hash(hub: Path, streaming: bool, cache: Path) -> None:
    texts = [stories.sample(seed) for seed in range(200)]
    write_rows(hub, "parquet", texts)
    both = [
        documents(prepared("owner/corpus@v1", split, cache_dir=cache, streaming=streaming))
        for split in ("train", "validation")
    ]
    assert Counter(both[0] + both[1]) == Counter(texts) and 5 < len(both[1]) < 40
    with pytest.raises(DataError) as error:
        prepared("owner/corpus@v1", cache_dir=cache, text_column="content", streaming=streaming)
    assert "no column 'content'; the columns there are 'id', 'text'" in sentence(error)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_hub_data_set_in_parts(n: int, split: str, hub: Path, cache: Path) -> None:
    for i in range(4):
        write_rows(hub, "parquet", [stories.sample(50 * i + j) for j in range(50)]).rename(hub / f"train-{i}.parquet")
    name = "owner/corpus@v1"
    right = prepared(name, split, cache_dir=cache / "whole")
    assert count_shards(name, split, TOKENIZER, cache) == 4
    for k in range(n):
        prepared(name, split, cache_dir=cache, part=(k, n))
    assert same(join_tokens(n, name, split, TOKENIZER, cache), right)


def test_a_hub_data_set_in_this_machines_cache_in_parts(
    hub: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(hub, "jsonl", [stories.sample(seed) for seed in range(5)])
    right = prepared("owner/corpus@v1", cache_dir=cache / "whole")
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_HUB_OFFLINE", True)
    assert count_shards("owner/corpus@v1", "train", TOKENIZER, cache) == 1
    for k in range(7):
        prepared("owner/corpus@v1", cache_dir=cache, part=(k, 7))
    assert same(join_tokens(7, "owner/corpus@v1", "train", TOKENIZER, cache), right)


def test_a_hub_data_set_with_its_own_splits(hub: Path, cache: Path) -> None:
    for split in ("train", "validation"):
        (hub / f"{split}.jsonl").write_text(f'{{"text": "{split} text"}}\n' * 3)
    assert documents(prepared("owner/corpus@v1", "validation", cache_dir=cache)) == ["validation text"] * 3
    assert documents(prepared("owner/corpus@v1", cache_dir=cache, max_documents=2)) == ["train text"] * 2
    with pytest.raises(DataError, match="has no split 'test'; it has 'train', 'validation'"):
        prepared("owner/corpus@v1", "test", cache_dir=cache)


def test_a_prepared_hub_data_set_needs_no_network(hub: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(hub, "jsonl", ["a text"] * 5)
    path = prepared("owner/corpus@v1", cache_dir=cache)
    monkeypatch.setattr(data, "_hub_answers", lambda: pytest.fail("asked the hub"))
    assert prepared("owner/corpus@v1", cache_dir=cache) == path


def test_an_unreachable_hub_is_one_sentence_within_five_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with socket.socket() as silent:  # takes the connection and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(DataError) as error:
            prepared("roneneldan/TinyStories", cache_dir=cache)
        assert time.monotonic() - began < 5
    assert "does not answer" in sentence(error) and "HF_HUB_OFFLINE=1" in str(error.value)


def test_offline_mode_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(data, "_hub_answers", lambda: pytest.fail("asked the hub"))
    began = time.monotonic()
    with pytest.raises(DataError) as error:
        prepared("roneneldan/TinyStories", cache_dir=cache)
    assert time.monotonic() - began < 5
    assert "HF_HUB_OFFLINE is set" in sentence(error) and "roneneldan/TinyStories" in str(error.value)


def test_without_the_package_datasets(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as error:
        prepared("roneneldan/TinyStories", cache_dir=cache)
    assert 'pip install "slm[data]"' in sentence(error)


def test_importing_the_module_imports_nothing_heavy() -> None:
    code = "import sys, slm.data; print({'datasets', 'pyarrow', 'modal', 'wandb', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8").stdout == "set()\n"


# bad input


def bad_source(folder: Path, case: str) -> object:
    file = folder / "a.txt"
    if case == "missing":
        return file
    if case == "no match":
        return str(folder / "*.txt")
    if case == "folder":
        (folder / "a.csv").write_text("x")
        return folder
    if case == "suffix":
        (folder / "a.csv").write_text("x")
        return folder / "a.csv"
    if case == "utf-8":
        file.write_bytes(b"good text " * 200_000 + b"\xff bad" + b" more text" * 50_000)
    elif case == "utf-16":
        file.write_bytes("some text".encode("utf-16"))
    elif case == "empty":
        file.write_text("")
    elif case == "name":
        return "shakespeare"
    else:
        file = folder / "a.jsonl"
        lines = {
            "column": '{"content": "x", "id": 1}',
            "json": '{"text": "x"}\n{"text": ',
            "list": '{"text": "x"}\n["x"]',
            "number": '{"text": 5}',
            "jsonl utf-8": '{"text": "x"}\n{"text": "\udcff"}',
            "blank": '{"text": ""}',
        }
        file.write_bytes(lines[case].encode("utf-8", "surrogateescape"))
    return file


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "a.txt does not exist"),
        ("no match", "*.txt does not exist"),
        ("folder", "has no .txt, .jsonl, .parquet file"),
        ("suffix", "a.csv is not a kind of file that is read: .txt, .jsonl, .parquet"),
        ("utf-8", "invalid byte at offset 2000000"),
        ("utf-16", "invalid byte at offset 0"),
        ("empty", "a.txt is empty"),
        ("name", "'shakespeare' is no corpus"),
        ("column", "line 1 has no column 'text'; the columns there are 'content', 'id'"),
        ("json", "line 2 is not JSON"),
        ("list", "line 2 holds a list"),
        ("number", "'text' is a int"),
        ("jsonl utf-8", "invalid byte at offset 24"),
        ("blank", "holds no text"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(case: str, message: str, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError) as error:
        prepared(bad_source(tmp_path, case), cache_dir=cache)
    assert message in sentence(error)
    assert not cache.exists() or not [file for file in cache.iterdir() if not file.name.endswith(".lock")]


def test_the_offset_of_a_bad_byte_counts_from_the_start_of_the_file(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good text\n" * 1000 + b"\xc3(" + b"more text\n" * 10)
    assert documents(prepared(tmp_path / "a.txt", cache_dir=cache))  # it lies in the part that is held out
    with pytest.raises(DataError, match="invalid byte at offset 10000;"):
        prepared(tmp_path / "a.txt", "validation", cache_dir=cache)


@pytest.mark.parametrize("damage", ["no parquet", "cut off", "a bad page"])
def test_a_damaged_shard_is_named(damage: str, tmp_path: Path, cache: Path) -> None:
    for i in range(3):
        file = write_rows(tmp_path, "parquet", [stories.sample(1000 * i + seed) for seed in range(1000)])
        file.rename(tmp_path / f"train-{i}.parquet")
    (tmp_path / "val.txt").write_text("Something else.")
    bad = tmp_path / "train-1.parquet"
    whole = bad.read_bytes()
    page = whole[:20_000] + bytes(255 - byte for byte in whole[20_000:21_000]) + whole[21_000:]
    bad.write_bytes({"no parquet": b"not parquet at all", "cut off": whole[:-300], "a bad page": page}[damage])
    with pytest.raises(DataError) as error:
        prepared(tmp_path, cache_dir=cache)
    assert "train-1.parquet cannot be read as Parquet" in sentence(error)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "val_fraction is 0.0"),
        ({"val_fraction": 1.5}, "val_fraction is 1.5"),
        ({"max_documents": 0}, "max_documents is 0"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"packing": "tight"}, "packing is 'tight'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"context_length": 0}, "context_length is 0"),
        ({"context_length": 10_000}, "fewer than the 10001 that one row of context_length=10000 needs"),
        ({"dataset_path": "x"}, "one of the two"),
        ({"dataset_name": None}, "one of the two"),
    ],
)
def test_bad_arguments_are_one_sentence(options: dict, message: str, cache: Path) -> None:
    common = {
        "dataset_name": "stories",
        "tokenizer": TOKENIZER,
        "cache_dir": cache,
        "max_documents": 20,
        "context_length": 16,
    }
    with pytest.raises(DataError) as error:
        create_dataloader(**{**common, **options})
    assert message in sentence(error)


def test_a_cache_that_is_no_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError) as error:
        prepared("stories", cache_dir=tmp_path / "file" / "cache", max_documents=9)
    assert "cannot be written to" in sentence(error)


# damage


@pytest.fixture
def small(cache: Path) -> Path:
    return prepared("stories", cache_dir=cache, max_documents=60)


def test_a_shortened_file_is_refused(small: Path) -> None:
    os.truncate(small, small.stat().st_size - 2)
    for use in (lambda: TokenDataset(small, 16), lambda: prepared("stories", cache_dir=small.parent, max_documents=60)):
        with pytest.raises(DataError) as error:
            use()
        assert "is damaged" in sentence(error)


def test_a_changed_bit_is_found(small: Path) -> None:
    TokenDataset(small, 16).verify()
    with open(small, "r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DataError, match="is damaged"):
        TokenDataset(small, 16).verify()


def test_lost_ends_are_found(small: Path) -> None:
    with open(small, "r+b") as file:
        file.write(b"\x01\x00")
    with pytest.raises(DataError, match="does not begin and end"):
        TokenDataset(small, 16)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "tokens": 5, "dtype": "uint9"}'])
def test_a_damaged_sidecar_is_refused(small: Path, content: str) -> None:
    small.with_suffix(".json").write_text(content)
    with pytest.raises(DataError) as error:
        TokenDataset(small, 16)
    assert "is damaged" in sentence(error)


def test_another_format_is_refused(small: Path) -> None:
    about = json.loads(small.with_suffix(".json").read_text())
    small.with_suffix(".json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(DataError, match="has format 99"):
        TokenDataset(small, 16)


def test_tokens_without_a_sidecar_are_made_anew(small: Path) -> None:
    right = small.read_bytes()
    small.with_suffix(".json").unlink()
    small.write_bytes(right[:100])
    with pytest.raises(DataError, match="does not exist"):
        TokenDataset(small, 16)
    assert prepared("stories", cache_dir=small.parent, max_documents=60) == small
    assert small.read_bytes() == right


def test_ids_of_another_tokenizer_are_refused(small: Path) -> None:
    bytes_only = Tokenizer("bytes", {bytes([i]): i for i in range(256)})
    with pytest.raises(DataError) as error:
        TokenDataset(small, 16, tokenizer=bytes_only)
    assert "tokenizer 'stories'" in sentence(error) and "not of 'bytes'" in str(error.value)


# death, company and a full disk

PREPARE = "import sys; from slm.data import prepare_tokens; print(prepare_tokens(sys.argv[1], 'train', 'stories', sys.argv[2]))"


@pytest.fixture
def large_text(tmp_path: Path) -> Path:
    file = tmp_path / "train.txt"
    file.write_text("\n\n".join(stories.sample(seed) for seed in range(2000)) * 8)
    (tmp_path / "val.txt").write_text("Something else.")
    return file


def start_preparing(source: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PREPARE, str(source), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


KILL = """
import json, os, random, signal, sys, time
from pathlib import Path
from slm import data
from slm.tokenizer import get_tokenizer

source, cache, calm, seed, kills = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
tokenizer = get_tokenizer("stories")
data.NOTE_SECONDS = 0.0
began = time.monotonic()
right = data.prepare_tokens(source, "train", tokenizer, calm)
whole = time.monotonic() - began
path = cache / right.name
draw, killed, went_on, finished = random.Random(seed), 0, 0, 0
while killed < kills:
    child = os.fork()
    if child == 0:
        data.prepare_tokens(source, "train", tokenizer, cache)
        os._exit(0)
    time.sleep(draw.uniform(0, whole))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.WIFSIGNALED(status)
    went_on += (cache / f".{path.name}.note").exists()
    if path.exists() and path.with_suffix(".json").exists():  # it counts, so it must be whole
        finished += 1
        assert path.read_bytes() == right.read_bytes()
        assert path.with_suffix(".json").read_bytes() == right.with_suffix(".json").read_bytes()
        path.unlink()
print(json.dumps([path.name, went_on, finished]))
"""


def kill_and_finish(source: Path, folder: Path, seed: int, kills: int) -> tuple[int, int]:
    """Kill preparations at random moments, then let one finish, and compare it with an undisturbed one."""
    cache, calm = folder / f"killed-{seed}", folder / f"calm-{seed}"
    command = [sys.executable, "-c", KILL, str(source), str(cache), str(calm), str(seed), str(kills)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    name, went_on, finished = json.loads(done.stdout)
    path = prepared(source, cache_dir=cache)
    assert path.name == name and path.read_bytes() == (calm / name).read_bytes()
    assert path.with_suffix(".json").read_bytes() == (calm / name).with_suffix(".json").read_bytes()
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".lock", ".tokens"]
    return went_on, finished


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_twenty_times_and_finished_is_as_if_undisturbed(large_text: Path, tmp_path: Path) -> None:
    went_on, _ = kill_and_finish(large_text, tmp_path, seed=0, kills=20)
    assert went_on >= 5, "hardly any kill came in the middle"


class Interrupted(BaseException):
    """What stops a process between two instructions, such as Ctrl-C."""


def interrupt(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, after: int = 4) -> Path:
    """Break off a preparation after some batches, each of which is noted; returns the unfinished file."""
    encode, calls = data.encode, itertools.count()

    def break_off(pieces: object, tokenizer: Tokenizer) -> np.ndarray:
        if next(calls) == after:
            raise Interrupted
        return encode(pieces, tokenizer)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(data, "NOTE_SECONDS", -1.0)
        patch.setattr(os, "cpu_count", lambda: 1)
        patch.setattr(data, "encode", break_off)
        with pytest.raises(Interrupted):
            prepared(source, cache_dir=cache)
    assert not list(cache.glob("*.tokens")) and not list(cache.glob("*.json"))
    (partial,) = cache.glob(".*.partial")
    return partial


def count_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each batch that is tokenized from now on."""
    calls: list[int] = []
    encode = data.encode
    monkeypatch.setattr(data, "encode", lambda pieces, tokenizer: [calls.append(1), encode(pieces, tokenizer)][1])
    return calls


def test_what_was_tokenized_is_not_tokenized_again(
    large_text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(large_text, cache, monkeypatch)
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
    large_text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a data set of the hub changed meanwhile: its name and revision are all that is known without a network."""
    interrupt(large_text, cache, monkeypatch)
    times, text = large_text.stat(), large_text.read_text()
    changed = text.replace("a", "o", 1)
    large_text.write_text(changed)
    os.utime(large_text, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert read(prepared(large_text, cache_dir=cache)) == [EOT, *TOKENIZER.encode(changed), EOT]


@pytest.mark.parametrize("damage", ["a changed byte", "cut off", "an unknown note", "half a note"])
def test_a_damaged_beginning_is_not_gone_on_with(
    damage: str, large_text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupt(large_text, cache, monkeypatch)
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
        note.write_text('{"place": 3}' if damage == "an unknown note" else note.read_text()[:20])
    assert read(prepared(large_text, cache_dir=cache)) == [EOT, *TOKENIZER.encode(large_text.read_text()), EOT]
    assert not list(cache.glob(".*.note"))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_one_of_two_is_killed_and_the_other_finishes(large_text: Path, cache: Path) -> None:
    processes = [start_preparing(large_text, cache) for _ in range(2)]
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in cache.glob(".*.partial")):
        assert time.monotonic() < deadline, [process.communicate() for process in processes if process.poll()]
        time.sleep(0.002)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].communicate()
    out, err = processes[1].communicate(timeout=60)
    assert processes[1].returncode == 0, err
    assert read(Path(out.strip())) == [EOT, *TOKENIZER.encode(large_text.read_text()), EOT]
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".lock", ".tokens"]


def test_the_bar_tells_tokens_per_second(large_text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(data, "tqdm", lambda **options: tqdm(**{**options, "disable": False, "file": screen}))
    prepared(large_text, cache_dir=cache)
    last = screen.getvalue().split("\r")[-1]
    assert re.search(r"100%.* [\d.]+ M tokens, [\d.]+ M tokens/s", last), last


def test_two_at_once_make_one_good_file(large_text: Path, cache: Path) -> None:
    processes = [start_preparing(large_text, cache) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    path = Path(results[0][0].strip())
    TokenDataset(path, 64, tokenizer=TOKENIZER).verify()
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".lock", ".tokens"]
    assert "it/s" not in results[0][1] and "tokens" not in results[0][1]  # no progress bar where there is no terminal


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(large_text: Path, cache: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
    command = [sys.executable, "-c", limit + PREPARE, str(large_text), str(cache)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("slm.data.DataError: ") and "could not be written" in last and "cache_dir" in last
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("call", ["fsync", "replace", "dump"])
def test_a_disk_that_is_full_at_the_end_leaves_nothing(
    call: str, large_text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens are written, and there is no room to keep them, for the sidecar, or for its text."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json if call == "dump" else os, call, full)
        with pytest.raises(DataError) as error:
            prepared(large_text, cache_dir=cache)
    assert "make room or choose another cache_dir" in sentence(error)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    assert read(prepared(large_text, cache_dir=cache)) == [EOT, *TOKENIZER.encode(large_text.read_text()), EOT]


# the loader


def loader(cache: Path, **options: object) -> TokenLoader:
    settings = {"batch_size": 8, "context_length": 32, "max_documents": 100, **options}
    return create_dataloader("stories", tokenizer=TOKENIZER, cache_dir=cache, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_each_row_comes_once_per_epoch(cache: Path, packing: str, batch_size: int) -> None:
    batches = loader(cache, packing=packing, batch_size=batch_size)
    n_rows = len(batches.dataset)
    steps = -(-3 * n_rows // batch_size)
    dealt = np.concatenate([batches.indices(step) for step in range(steps)])
    assert len(dealt) == steps * batch_size
    epochs = dealt[: 3 * n_rows].reshape(3, n_rows)
    for epoch in epochs:
        assert sorted(epoch) == list(range(n_rows))
    assert not (epochs[0] == epochs[1]).all() and not (epochs[0] == np.arange(n_rows)).all()


def test_batches_hold_the_rows_that_the_file_has(cache: Path) -> None:
    batches = loader(cache)
    tokens = np.array(read(batches.dataset.path))  # type: ignore[union-attr]
    x, y = batches.batch(3)
    for row, index in enumerate(batches.indices(3)):
        assert x[row].tolist() == tokens[index * 32 : index * 32 + 32].tolist()
        assert y[row].tolist() == tokens[index * 32 + 1 : index * 32 + 33].tolist()
    assert x.dtype == y.dtype == torch.int64 and batches.tokens_per_batch == 256
    assert batches.steps_per_epoch == -(-((len(tokens) - 1) // 32) // 8) and batches.tokenizer is TOKENIZER


def test_an_epoch_for_validation_has_each_target_once(cache: Path) -> None:
    for options in ({"batch_size": 7}, {"batch_size": 7, "num_workers": 2}, {"batch_size": 10**4}):
        batches = loader(cache, **options)
        targets = torch.cat([y.flatten() for _, y in batches.epoch_batches()])
        assert targets.tolist() == read(batches.dataset.path)[1 : len(targets) + 1]  # type: ignore[union-attr]
        assert len(targets) == len(batches.dataset) * 32 and batches.step == 0


def test_order_depends_on_seed_and_step_alone(cache: Path) -> None:
    one, two = loader(cache, seed=5), loader(cache, seed=5)
    later = two.batch(500)
    assert torch.equal(later[0], one.batch(500)[0])
    assert all(torch.equal(a[0], one.batch(step)[0]) for step, a in enumerate(itertools.islice(two, 30)))
    assert not torch.equal(one.batch(0)[0], loader(cache, seed=6).batch(0)[0])
    assert np.array_equal(loader(cache, shuffle=False).indices(1), np.arange(8, 16))


def test_the_order_is_frozen() -> None:
    """A resumed run needs the order that another version of numpy gave."""
    assert data.epoch_order(10, 0, 0).tolist() == [3, 7, 6, 4, 1, 0, 2, 8, 5, 9]
    assert data.epoch_order(10, 3, 7).tolist() == [4, 5, 9, 6, 0, 1, 2, 3, 7, 8]


@pytest.mark.parametrize("workers", [(0, 0), (0, 3), (3, 0), (2, 2)])
@pytest.mark.parametrize("stop", [0, 1, 37, 110])
def test_resuming_gives_the_batches_of_a_run_without_a_break(cache: Path, workers: tuple[int, int], stop: int) -> None:
    whole = [x for x, _ in itertools.islice(loader(cache), 130)]
    first = loader(cache, num_workers=workers[0])
    before = [x for x, _ in itertools.islice(first, stop)]
    state = json.loads(json.dumps(first.state_dict()))
    assert state == {"seed": 0, "step": stop}
    second = loader(cache, seed=99, num_workers=workers[1])
    second.load_state_dict(state)
    after = [x for x, _ in itertools.islice(second, 130 - stop)]
    assert all(map(torch.equal, before + after, whole)) and len(before + after) == 130


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_are_the_single_process(cache: Path, world_size: int) -> None:
    single = loader(cache, batch_size=8)
    ranks = [loader(cache, batch_size=8 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {rank.steps_per_epoch for rank in ranks} == {single.steps_per_epoch}
    for step in (0, 1, single.steps_per_epoch - 1, single.steps_per_epoch, 200):
        assert torch.equal(torch.cat([rank.batch(step)[0] for rank in ranks]), single.batch(step)[0])
    rows = [row for rank in ranks for _, y in rank.epoch_batches() for row in y.tolist()]
    assert sorted(rows) == sorted(row for _, y in single.epoch_batches() for row in y.tolist())


def test_leaving_a_loader_early_leaves_no_thread(cache: Path) -> None:
    before = threading.active_count()
    batches = iter(loader(cache, num_workers=3))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_in_a_thread_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(data.map_ahead(lambda n: 1 // n, [2, 1, 0, 1], 2))
    assert list(data.map_ahead(str, range(20), 3)) == list(map(str, range(20)))


def test_another_process_gets_the_path_and_not_the_tokens(cache: Path) -> None:
    dataset = loader(cache, max_documents=2000).dataset
    sent = pickle.dumps(dataset)
    assert len(sent) < 50_000 < dataset.path.stat().st_size  # type: ignore[union-attr]
    copy = pickle.loads(sent)
    assert torch.equal(copy[5][0], dataset[5][0]) and copy.tokenizer.fingerprint == TOKENIZER.fingerprint


def test_a_loader_goes_to_a_spawned_process(cache: Path) -> None:
    batches = loader(cache, num_workers=2)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        theirs = pool.submit(TokenLoader.batch, batches, 70).result(timeout=60)
    assert torch.equal(theirs[0], batches.batch(70)[0])


def test_batches_are_pinned_only_where_that_is_of_use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loader(cache).pin_memory == torch.cuda.is_available()
    monkeypatch.setattr(Tensor, "pin_memory", lambda batch: batch + 1)  # what marks a batch as pinned here
    pinned, plain = loader(cache, pin_memory=True).batch(0), loader(cache, pin_memory=False).batch(0)
    assert torch.equal(pinned[0], plain[0] + 1) and torch.equal(pinned[1], plain[1] + 1)


def test_only_two_orders_are_kept(cache: Path) -> None:
    batches = loader(cache, batch_size=len(loader(cache).dataset))
    for step in range(5):
        batches.indices(step)
    assert data.epoch_order.cache_info().currsize <= 2


def test_a_path_may_be_given_either_way(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(stories.sample(0) + "\n" + stories.sample(1))
    by_path = create_dataloader(dataset_path=str(file), tokenizer="stories", context_length=8, cache_dir=cache)
    by_name = create_dataloader(str(file), tokenizer="stories", context_length=8, cache_dir=cache)
    assert torch.equal(by_path.batch(0)[0], by_name.batch(0)[0])


def test_three_times_as_fast_as_a_default_dataloader(cache: Path) -> None:
    batches = loader(cache, batch_size=32, context_length=256, max_documents=2000)
    plain = torch.utils.data.DataLoader(batches.dataset, batch_size=32, shuffle=True)

    def seconds(rows: object, n: int) -> float:
        began = time.process_time()
        assert sum(1 for _ in itertools.islice(rows, n)) == n  # type: ignore[call-overload]
        return (time.process_time() - began) / n

    next(iter(batches)), next(iter(plain))
    slow = min(seconds(itertools.chain.from_iterable(itertools.repeat(plain)), 60) for _ in range(3))
    fast = min(seconds(batches, 60) for _ in range(3))
    assert slow > 3 * fast, f"{slow / fast:.1f} times as fast"


def test_gpt2_ids_of_a_text_file(gpt2_cache: object, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("hello world\n" * 100)
    batches = create_dataloader(dataset_path=file, context_length=6, shuffle=False, batch_size=1, cache_dir=cache)
    assert batches.batch(0)[0].tolist() == [[50256, 31373, 995, 198, 31373, 995]]


# the benchmarks, on a small scale


def benchmark(script: str, *arguments: str) -> str:
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_benchmark_of_loaders() -> None:
    table = benchmark("loader.py", "--megabytes", "1", "--rounds", "1", "--batches", "10")
    assert [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| 1 ")] == [
        "list",
        "map, per row",
        "slm",
    ]
    assert "tokens per CPU second against a map-style Dataset" in table


def test_the_recorded_benchmark_is_whole() -> None:
    command, header, *rows = Path("benchmarks/results/loader.csv").read_text().splitlines()
    assert command.startswith("# python benchmarks/loader.py --save; ")
    assert header == "megabytes,loader,anonymous_mb,m_tokens_per_cpu_s"
    found = list(csv.reader(rows))
    assert {row[1] for row in found} == {"list", "map, per row", "slm"}
    assert {float(row[0]) for row in found if row[1] == "slm"} >= {10, 100, 1000}


def test_the_benchmark_of_prepare_tokens(gpt2_cache: object) -> None:
    table = benchmark("prepare_tokens.py", "--megabytes", "0.5", "--rounds", "1", "--kinds", "jsonl")
    assert "| encode_ordinary_batch |" in table and "| .jsonl |" in table


def test_two_corpora_of_the_same_names_sizes_and_times_are_two(tmp_path):
    for folder, text in (("x", "aaaa bbbb"), ("y", "cccc dddd")):
        file = tmp_path / folder / "texts" / "a.txt"
        file.parent.mkdir(parents=True)
        file.write_text(text * 200)
        os.utime(file, ns=(10**18, 10**18))
    paths = [prepare_tokens(tmp_path / folder / "texts", "train", TOKENIZER, tmp_path / "cache") for folder in "xy"]
    texts = [TOKENIZER.decode(np.fromfile(path, np.uint16).tolist()) for path in paths]
    assert "aaaa" in texts[0] and "cccc" in texts[1]


@pytest.mark.parametrize("text", ["é", "né", "こんにちは", "a\U0001f600"])
def test_a_cut_inside_the_last_character_is_moved(tmp_path, text):
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    for fraction in (0.1, 0.3, 0.5, 0.7):
        cut = data._tail_start(file, fraction)
        assert text.encode()[:cut].decode() + text.encode()[cut:].decode() == text


def test_a_run_of_spaces_too_long_for_the_pattern_is_cut():
    text = "a" + " " * 1_200_000 + "b"
    assert TOKENIZER.decode(data.encode([data.Piece(text, True)], TOKENIZER)[1:].tolist()) == text


@pytest.mark.parametrize("line", ['{"text": ' + "[" * 200_000, '{"text": ' + "9" * 5000 + "}"])
def test_json_that_python_refuses_is_one_sentence(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="line 1 (cannot be read as JSON|is not JSON)") as caught:
        prepare_tokens(tmp_path / "a.jsonl", "train", TOKENIZER, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_saved_tokenizer_may_be_given_as_a_path(tmp_path):
    (tmp_path / "a.txt").write_text("Mia has a kite. " * 50)
    given = [TOKENIZER, TOKENIZER.save(tmp_path / "saved"), str(tmp_path / "saved")]
    paths = {prepare_tokens(tmp_path / "a.txt", "train", t, tmp_path / "cache") for t in given}
    assert len(paths) == 1


def test_a_seed_beyond_numpys_is_refused_at_once():
    rows = TextDataset(["hello there " * 50], TOKENIZER, 4)
    with pytest.raises(DataError, match=r"below 2\*\*32"):
        TokenLoader(rows, 2, seed=1 << 32)
