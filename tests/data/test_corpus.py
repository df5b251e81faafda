"""slm.data.corpus: what is read, where it comes from, and what can be wrong with it."""

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from slm import files
from slm.data import corpus, stories
from slm.data import hub as hub_module
from slm.data.corpus import DataConfig, StorySource, _tail_start, find_source
from slm.data.prepare import prepare_tokens
from slm.data.tokenizer import get_tokenizer
from slm.errors import SlmError

TOKENIZER = get_tokenizer("stories")
EOT = TOKENIZER.eot_token


def test_train_and_validation_stories_have_nothing_in_common(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    documents: Callable,
    prepared: Callable,
) -> None:
    few = [
        stories.sample(seed) for seed in range(40)
    ]  # a corpus in which seeds give the same story again and again
    monkeypatch.setattr(
        stories, "sample", lambda seed: few[(seed * 7919 + seed // 10**9) % 40]
    )
    train = documents(prepared("stories", cache_dir=cache, max_documents=20))
    validation = documents(
        prepared("stories", "validation", cache_dir=cache, max_documents=20)
    )
    assert len(train) == len(validation) == 20
    assert not set(train) & set(validation)


def test_defaults_of_the_stories(
    cache: Path, documents: Callable, prepared: Callable
) -> None:
    sizes = StorySource(DataConfig("stories")).sizes
    assert sizes == {"train": 30_000, "validation": 1_000}
    assert len(documents(prepared("stories", "val", cache_dir=cache))) == 1_000


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
def test_one_long_text_is_cut_into_a_head_and_a_tail(
    text: str, tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
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


@pytest.mark.parametrize("text", ["é", "né", "こんにちは", "a\U0001f600"])
def test_a_cut_inside_the_last_character_is_moved(tmp_path, text):
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    for fraction in (0.1, 0.3, 0.5, 0.7):
        cut = _tail_start(file, fraction)
        assert text.encode()[:cut].decode() + text.encode()[cut:].decode() == text


def test_few_text_files_are_each_cut_and_many_are_split_whole(
    tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"File {i}.\n" * 20)
    few = prepared(str(folder / "[0-2].txt"), "validation", cache_dir=cache)
    assert [text.split("\n")[0] for text in documents(few)] == [
        "File 0.",
        "File 1.",
        "File 2.",
    ]
    train, validation = (
        documents(prepared(folder, cache_dir=cache)),
        documents(prepared(folder, "validation", cache_dir=cache)),
    )
    assert len(train) == 18 and len(validation) == 2
    assert Counter(train + validation) == Counter(
        file.read_text() for file in folder.iterdir()
    )


def test_files_named_for_a_split_are_that_split(
    tmp_path: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    (tmp_path / "my_train.txt").write_text("Train. " * 30)
    (tmp_path / "my_valid.txt").write_text("Valid. " * 30)
    (tmp_path / "my_test.txt").write_text("Test. " * 30)
    for source in (tmp_path, tmp_path / "my_train.txt"):
        assert documents(prepared(source, cache_dir=cache)) == ["Train. " * 30]
        assert documents(prepared(source, "validation", cache_dir=cache)) == [
            "Valid. " * 30
        ]
    assert documents(prepared(tmp_path, "test", cache_dir=cache)) == ["Test. " * 30]


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        # titles of books
        (["A_Test_of_Wills", "Val_McDermid", "the train to Pakistan", "Emma"], 4, 0),
        (["x_val", "Emma", "my_test"], 3, 0),
        # names of data sets
        (["train", "val"], 1, 1),
        (["Train", "Validation"], 1, 1),
        (["x-train", "x-valid", "README"], 1, 1),
        (["train-00000-of-00002", "train-00001-of-00002", "validation-0"], 2, 1),
        (["a.train", "b.train", "c.val", "d.test"], 2, 1),
        (["train/a", "train/b", "validation/c"], 2, 1),
        (["a", "b", "validation"], 2, 1),
        (["train-0", "train-1"], 2, 0),
    ],
)
def test_only_names_of_the_kind_that_data_sets_have_are_splits(
    names, train, validation, tmp_path
):
    for name in names:
        (tmp_path / f"{name}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(f"The text of {name}.")
    source = corpus.FileSource(DataConfig(str(tmp_path)))
    assert len(source.train) == train
    assert len(source.others.get("validation", [])) == validation
    told = " ".join(source.notes)
    split = validation > 0
    assert split == ("train (by name)" in told)
    if "README" in names:
        assert "no split (by name): README.txt" in told
    if names[0] == "x_val":
        assert "read with all (no other file is named for train): my_test.txt" in told


@pytest.mark.parametrize("name", ["Train", "train", "x_train", "train-00000-of-00001"])
def test_a_single_file_named_for_train_brings_no_copy_of_itself(name, tmp_path):
    (tmp_path / f"{name}.txt").write_text("All the text that there is.")
    source = corpus.FileSource(DataConfig(str(tmp_path / f"{name}.txt")))
    assert source.train == [tmp_path / f"{name}.txt"] and not source.others


def test_what_is_left_out_of_a_folder_is_counted(tmp_path, cache, prepared, capsys):
    texts = tmp_path / "texts"
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.txt", "B.TXT", "c.md", "d.md", "e.gz", "Makefile", ".hidden.txt"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (texts / name).write_text("Some words.\n\n" * 20)
    (texts / "empty.txt").touch()
    (texts / "link").symlink_to(tmp_path / "elsewhere")
    prepared(texts, cache_dir=cache)
    left_out, found = capsys.readouterr().err.splitlines()[-2:]
    assert left_out == (
        f"left out of {texts}: 1 .gz, 2 .md, 1 a link to a folder, 1 empty, 1 without a suffix"
    )
    assert re.match(r"train: 2 documents, [\d,]+ tokens \(0.1 held out", found)


def test_a_path_is_what_a_shell_would_make_of_it(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TEXTS", "texts")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Some words.\n\n" * 20)
    for path in ("~/texts/a.txt", "$HOME/texts", "~/${TEXTS}/*.txt"):
        data = DataConfig(path, cache_dir="$HOME/cache")
        made = prepare_tokens(data, "train", tokenizer)
        assert made.parent == tmp_path / "cache"
    with pytest.raises(
        SlmError, match=r"'\$NOWHERE/a.txt', \$NOWHERE stands for nothing"
    ):
        find_source(DataConfig("$NOWHERE/a.txt"))


def test_two_corpora_of_the_same_names_sizes_and_times_are_two(
    tmp_path, prepared: Callable
):
    for folder, text in (("x", "aaaa bbbb"), ("y", "cccc dddd")):
        file = tmp_path / folder / "texts" / "a.txt"
        file.parent.mkdir(parents=True)
        file.write_text(text * 200)
        os.utime(file, ns=(10**18, 10**18))
    paths = [
        prepared(
            tmp_path / folder / "texts",
            tokenizer=TOKENIZER,
            cache_dir=tmp_path / "cache",
        )
        for folder in "xy"
    ]
    texts = [TOKENIZER.decode(np.fromfile(path, np.uint16).tolist()) for path in paths]
    assert "aaaa" in texts[0] and "cccc" in texts[1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_split_by_content(
    kind: str,
    tmp_path: Path,
    cache: Path,
    documents: Callable,
    prepared: Callable,
    write_rows: Callable,
) -> None:
    texts = [
        stories.sample(seed) for seed in [*range(400), *range(200)]
    ]  # half of them twice
    file = write_rows(tmp_path, kind, texts)
    train, validation = (
        documents(prepared(file, cache_dir=cache)),
        documents(prepared(file, "validation", cache_dir=cache)),
    )
    assert Counter(train + validation) == Counter(texts)
    assert not set(train) & set(validation)
    assert 0.05 < len(validation) / len(texts) < 0.15
    assert train == [
        text for text in texts if text in set(train)
    ]  # in the order of the file
    first = documents(prepared(file, cache_dir=cache, max_documents=7))
    assert first == train[:7]


def test_a_folder_may_mix_kinds(
    tmp_path: Path,
    cache: Path,
    documents: Callable,
    prepared: Callable,
    write_rows: Callable,
) -> None:
    write_rows(tmp_path, "jsonl", ["from jsonl"])
    write_rows(tmp_path, "parquet", ["from parquet"])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("from text")
    (tmp_path / "validation.txt").write_text("held out")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "ignored.csv").write_text("not read")
    assert documents(prepared(tmp_path, cache_dir=cache)) == [
        "from text",
        "from jsonl",
        "from parquet",
    ]


# the hub, through `datasets` on local files


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for any data set of the hub: everything but the download is the real path."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "_ask", lambda *_: None)
    load, folder = datasets.load_dataset, tmp_path / "corpus"
    folder.mkdir()

    def from_folder(
        repository: str, config: str | None, revision: str | None, streaming: bool
    ) -> object:
        assert (repository, config, revision) == ("owner/corpus", None, "v1")
        return load(str(folder), streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_without_validation_is_split_by_hash(
    hub: Path,
    streaming: bool,
    cache: Path,
    documents: Callable,
    prepared: Callable,
    sentence: Callable,
    write_rows: Callable,
) -> None:
    texts = [stories.sample(seed) for seed in range(200)]
    write_rows(hub, "parquet", texts)
    both = [
        documents(
            prepared("owner/corpus@v1", split, cache_dir=cache, streaming=streaming)
        )
        for split in ("train", "validation")
    ]
    assert Counter(both[0] + both[1]) == Counter(texts) and 5 < len(both[1]) < 40
    with pytest.raises(SlmError) as error:
        prepared(
            "owner/corpus@v1",
            cache_dir=cache,
            text_column="content",
            streaming=streaming,
        )
    assert "no column 'content'; the columns there are 'id', 'text'" in sentence(error)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_hub_data_set_in_parts(
    n: int,
    split: str,
    hub: Path,
    cache: Path,
    prepared: Callable,
    joined: Callable,
    shards: Callable,
    write_rows: Callable,
    same: Callable,
) -> None:
    for i in range(4):
        write_rows(
            hub, "parquet", [stories.sample(50 * i + j) for j in range(50)]
        ).rename(hub / f"train-{i}.parquet")
    name = "owner/corpus@v1"
    right = prepared(name, split, cache_dir=cache / "whole")
    assert shards(name, split, cache_dir=cache) == 4
    for k in range(n):
        prepared(name, split, cache_dir=cache, part=(k, n))
    assert same(joined(n, name, split, cache_dir=cache), right)


def test_a_hub_data_set_in_this_machines_cache_in_parts(
    hub: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Callable,
    joined: Callable,
    shards: Callable,
    write_rows: Callable,
    same: Callable,
) -> None:
    write_rows(hub, "jsonl", [stories.sample(seed) for seed in range(5)])
    right = prepared("owner/corpus@v1", cache_dir=cache / "whole")
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_HUB_OFFLINE", True)
    assert shards("owner/corpus@v1", "train", cache_dir=cache) == 1
    for k in range(7):
        prepared("owner/corpus@v1", cache_dir=cache, part=(k, 7))
    assert same(joined(7, "owner/corpus@v1", "train", cache_dir=cache), right)


def test_a_hub_data_set_with_its_own_splits(
    hub: Path, cache: Path, documents: Callable, prepared: Callable
) -> None:
    for split in ("train", "validation"):
        (hub / f"{split}.jsonl").write_text(f'{{"text": "{split} text"}}\n' * 3)
    assert (
        documents(prepared("owner/corpus@v1", "validation", cache_dir=cache))
        == ["validation text"] * 3
    )
    assert (
        documents(prepared("owner/corpus@v1", cache_dir=cache, max_documents=2))
        == ["train text"] * 2
    )
    with pytest.raises(
        SlmError, match="has no split 'test'; it has 'train', 'validation'"
    ):
        prepared("owner/corpus@v1", "test", cache_dir=cache)


def test_a_prepared_hub_data_set_needs_no_network(
    hub: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Callable,
    write_rows: Callable,
) -> None:
    write_rows(hub, "jsonl", ["a text"] * 5)
    path = prepared("owner/corpus@v1", cache_dir=cache)
    monkeypatch.setattr(hub_module, "answers", lambda *_: pytest.fail("asked"))
    assert prepared("owner/corpus@v1", cache_dir=cache) == path


def test_an_unreachable_hub_is_one_sentence_within_five_seconds(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Callable,
    sentence: Callable,
    waits_in: Callable[[ModuleType], list[float]],
) -> None:
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    waits = waits_in(files)
    with socket.socket() as silent:  # takes the connection and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(
            constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        with pytest.raises(SlmError) as error:
            prepared("roneneldan/TinyStories", cache_dir=cache)
    seconds, _ = sorted(waits)  # the other is for all that is asked
    assert seconds < 5
    assert "does not answer" in sentence(error) and "HF_HUB_OFFLINE=1" in str(
        error.value
    )


def test_offline_mode_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch, prepared: Callable, sentence: Callable
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_module, "answers", lambda *_: pytest.fail("asked"))
    for place, call in (
        (socket, "getaddrinfo"),
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
    ):
        monkeypatch.setattr(
            place, call, lambda *_, **__: pytest.fail("asked the network")
        )
    with pytest.raises(SlmError) as error:
        prepared("roneneldan/TinyStories", cache_dir=cache)
    assert "HF_HUB_OFFLINE is set" in sentence(
        error
    ) and "roneneldan/TinyStories" in str(error.value)


def test_without_the_package_datasets(
    cache: Path, monkeypatch: pytest.MonkeyPatch, prepared: Callable, sentence: Callable
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SlmError) as error:
        prepared("roneneldan/TinyStories", cache_dir=cache)
    assert "pip install datasets" in sentence(error)


def test_the_settings_and_sources_need_no_torch() -> None:
    code = "import sys, slm.data.corpus; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.stdout == "False\n", done.stderr


def test_importing_the_module_imports_nothing_heavy() -> None:
    code = "import sys, slm.data.dataset; print({'datasets', 'pyarrow', 'modal', 'wandb', 'pandas'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, encoding="utf-8"
        ).stdout
        == "set()\n"
    )


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
        (
            "column",
            "line 1 has no column 'text'; the columns there are 'content', 'id'",
        ),
        ("json", "line 2 is not JSON"),
        ("list", "line 2 holds a list"),
        ("number", "'text' is a int"),
        ("jsonl utf-8", "invalid byte at offset 24"),
        ("blank", "holds no text"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    case: str,
    message: str,
    tmp_path: Path,
    cache: Path,
    prepared: Callable,
    sentence: Callable,
) -> None:
    with pytest.raises(SlmError) as error:
        prepared(bad_source(tmp_path, case), cache_dir=cache)
    assert message in sentence(error)
    assert not cache.exists() or not [
        file for file in cache.iterdir() if not file.name.endswith(".lock")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"val_fraction": 0.0},
            "val_fraction = 0.0 is not allowed; it must be greater than 0",
        ),
        (
            {"val_fraction": 1.5},
            "val_fraction = 1.5 is not allowed; it must be less than 1",
        ),
        (
            {"max_documents": 0},
            "max_documents = 0 is not allowed; it must be greater than or equal to 1",
        ),
        (
            {"packing": "tight"},
            "packing = 'tight' is not allowed; it must be 'stream' or 'documents'",
        ),
        (
            {"num_workers": -1},
            "num_workers = -1 is not allowed; it must be greater than or equal to 0",
        ),
        (
            {"dataset": ""},
            "dataset = '' is not allowed; it must be a text that is not empty",
        ),
        ({"num_worker": 2}, "num_worker is not a key; did you mean 'num_workers'?"),
    ],
)
def test_a_wrong_setting_is_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(SlmError) as error:
        DataConfig(**{"dataset": "stories", **options})
    assert str(error.value) == f"DataConfig.{message}"


def test_the_stories_are_known_by_their_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    before = StorySource(DataConfig("stories")).fingerprint
    assert StorySource(DataConfig("stories", max_documents=5)).fingerprint == before
    name, lines = next(iter(stories.RULES.items()))
    monkeypatch.setitem(stories.RULES, name, [*lines, "one more line"])
    assert StorySource(DataConfig("stories")).fingerprint != before
