"""slm.data.readers: pieces of texts, and files read in constant memory."""

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slm.data import stories
from slm.data.batches import encode
from slm.data.readers import (
    READERS,
    holds_documents,
    in_validation,
    split_at_markers,
    split_pieces,
    take_texts,
)
from slm.data.tokenizer import get_tokenizer
from slm.errors import SlmError

TOKENIZER = get_tokenizer("stories")
EOT = TOKENIZER.eot_token


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
        pieces = list(split_pieces(blocks))
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.starts for piece in pieces] == [True] + [False] * (
            len(pieces) - 1
        )
        if all(
            any(a in " \n" and not b.isspace() for a, b in itertools.pairwise(block))
            for block in blocks[:-1]
        ):
            parts = [encode(piece.text, TOKENIZER) for piece in pieces]
            assert np.concatenate(parts).tolist() == TOKENIZER.encode(text), repr(text)


def test_a_block_without_a_space_is_still_read(
    tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    file = tmp_path / "long.txt"
    file.write_text("x" * (1 << 20) + "y" * 100_000 + " end")
    train, validation = (
        prepared(file, cache_dir=cache),
        prepared(file, "validation", cache_dir=cache),
    )
    assert documents(train)[0] + documents(validation)[0] == file.read_text()


def test_a_byte_order_mark_is_no_text(
    tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    file = tmp_path / "bom.txt"
    file.write_bytes(b"\xef\xbb\xbf" + b"Some words.\n" * 50)
    assert documents(prepared(file, cache_dir=cache))[0].startswith("Some")


@pytest.mark.parametrize("rows_per_group", [500, 50_000])
def test_a_parquet_file_is_read_in_constant_memory(
    rows_per_group: int, tmp_path: Path
) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [random.Random(i).randbytes(1500).hex() for i in range(10_000)]  # 30 MB
    parquet.write_table(
        pyarrow.table({"text": texts}),
        tmp_path / "a.parquet",
        row_group_size=rows_per_group,
    )
    code = (
        "import sys, pyarrow; from pathlib import Path; from slm.data.readers import READERS\n"
        "rows = READERS['.parquet'](Path(sys.argv[1]), 'text', lambda share: None)\n"
        "print(sum(len(row['text']) for _, row in rows), pyarrow.default_memory_pool().max_memory())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    read, peak = map(
        int,
        subprocess.run(
            command, capture_output=True, check=True, encoding="utf-8"
        ).stdout.split(),
    )
    assert read == 30_000_000 and peak < 20e6


def test_half_a_surrogate_pair_null_and_empty_texts(
    tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(
        '{"text": "a \\ud83d b"}\n\n{"text": ""}\n{"text": null}\n{"text": "c"}\n'
    )
    (tmp_path / "val.jsonl").write_text('{"text": "v"}\n')
    assert documents(prepared(file, cache_dir=cache)) == ["a \ufffd b", "c"]


@pytest.mark.parametrize(
    "line", ['{"text": ' + "[" * 200_000, '{"text": ' + "9" * 5000 + "}"]
)
def test_json_that_python_refuses_is_one_sentence(tmp_path, line, prepared: Callable):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(
        SlmError, match="line 1 (cannot be read as JSON|is not JSON)"
    ) as caught:
        prepared(
            tmp_path / "a.jsonl", tokenizer=TOKENIZER, cache_dir=tmp_path / "cache"
        )
    assert "\n" not in str(caught.value)


def test_a_line_that_the_memory_does_not_hold_is_named(tmp_path, monkeypatch):
    def full(text: str) -> None:
        raise MemoryError

    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n')
    monkeypatch.setattr(json, "loads", full)
    told = "a.jsonl, line 1 cannot be read as JSON: the memory does not hold it"
    with pytest.raises(SlmError, match=told):
        list(READERS[".jsonl"](file, "text", lambda n: None))


def test_end_of_text_at_a_documents_end_is_left_out_however_often():
    end = "<|endoftext|>"
    texts = ["a" + end, f"b {end}\n{end} ", f"c {end} d", end + end, f"{end}e"]
    rows = (("here", {"text": text}) for text in texts)
    assert list(take_texts(rows, "text")) == ["a", "b ", f"c {end} d", f"{end}e"]


def test_the_offset_of_a_bad_byte_counts_from_the_start_of_the_file(
    tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    (tmp_path / "a.txt").write_bytes(
        b"good text\n" * 1000 + b"\xc3(" + b"more text\n" * 10
    )
    assert documents(
        prepared(tmp_path / "a.txt", cache_dir=cache)
    )  # it lies in the part that is held out
    with pytest.raises(SlmError, match="invalid byte at offset 10000;"):
        prepared(tmp_path / "a.txt", "validation", cache_dir=cache)


@pytest.mark.parametrize("damage", ["no parquet", "cut off", "a bad page"])
def test_a_damaged_shard_is_named(
    damage: str,
    tmp_path: Path,
    cache: Path,
    prepared: Callable,
    sentence: Callable,
    write_rows: Callable,
) -> None:
    for i in range(3):
        file = write_rows(
            tmp_path,
            "parquet",
            [stories.sample(1000 * i + seed) for seed in range(1000)],
        )
        file.rename(tmp_path / f"train-{i}.parquet")
    (tmp_path / "val.txt").write_text("Something else.")
    bad = tmp_path / "train-1.parquet"
    whole = bad.read_bytes()
    page = (
        whole[:20_000]
        + bytes(255 - byte for byte in whole[20_000:21_000])
        + whole[21_000:]
    )
    bad.write_bytes(
        {
            "no parquet": b"not parquet at all",
            "cut off": whole[:-300],
            "a bad page": page,
        }[damage]
    )
    with pytest.raises(SlmError) as error:
        prepared(tmp_path, cache_dir=cache)
    assert "train-1.parquet cannot be read as Parquet" in sentence(error)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_the_split_by_hash_is_frozen() -> None:
    """Token files of other machines, and of older versions, must be split the same way."""
    held = [i for i in range(60) if in_validation(f"document {i}", 0.1)]
    assert held == [40, 44, 59]


# documents of one text file, with end-of-text between them


def test_lines_of_end_of_text_part_documents(
    tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    """The form in which TinyStories is published."""
    texts = [stories.sample(seed) for seed in range(200)]
    file = tmp_path / "tiny.txt"
    file.write_text("\n<|endoftext|>\n".join(["", *texts, ""]))
    train, held = (
        documents(prepared(file, split, cache_dir=cache))
        for split in ("train", "validation")
    )
    assert sorted(train + held) == sorted(texts) and 5 < len(held) < 40
    assert train == [text for text in texts if text in {*train}]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a\n<|endoftext|>\nb", ["a", "b"]),
        ("a\r\n<|endoftext|>\r\nb\r\n", ["a", "b"]),
        ("\ufeff<|endoftext|>\na\n\nb\n", ["a\n\nb"]),
        ("a\n <|endoftext|>\t\n\n\n<|endoftext|>", ["a"]),
        ("say <|endoftext|> aloud\n<|endoftext|>\nb", ["say <|endoftext|> aloud", "b"]),
        ("<|endoftext|> a\n<|endoftext|>x\n", None),
    ],
)
def test_a_marker_is_a_line_that_holds_nothing_else(text, right, tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    assert holds_documents(file) == (right is not None)
    plain = text.removeprefix("\ufeff")
    for size in (1, 2, 3, 7, 100):
        blocks = [plain[i : i + size] for i in range(0, len(plain), size)]
        found = [document for document in split_at_markers(blocks) if document]
        assert found == (right or [plain.strip("\n")])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_end_of_text_at_a_rows_end_is_no_text(
    kind, tmp_path, cache, documents, prepared, write_rows
):
    write_rows(
        tmp_path,
        kind,
        [
            "one<|endoftext|>",
            "two\n<|endoftext|>\n",
            "a <|endoftext|> b",
            "<|endoftext|>",
        ],
    )
    (tmp_path / "validation.txt").write_text("held out")
    assert documents(prepared(tmp_path, cache_dir=cache)) == [
        "one",
        "two",
        "a <|endoftext|> b",
    ]


def test_an_offset_counts_a_byte_order_mark(tmp_path, cache, prepared):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "\xff"}\n')
    with pytest.raises(SlmError, match="invalid byte at offset 13;"):
        prepared(tmp_path / "a.jsonl", cache_dir=cache)
