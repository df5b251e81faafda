"""slm.data.dataset: token files as rows, damage to them, and the doors to batches."""

import csv
import itertools
import json
import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from slm import cli
from slm.data import stories
from slm.data.batches import TokenLoader
from slm.data.dataset import TokenDataset, create_dataloader, make_loaders, token_files
from slm.data.tokenizer import Tokenizer, get_tokenizer
from slm.errors import SlmError

TOKENIZER = get_tokenizer("stories")
EOT = TOKENIZER.eot_token


@pytest.fixture
def small(cache: Path, prepared: Callable) -> Path:
    return prepared("stories", cache_dir=cache, max_documents=60)


def test_a_large_vocabulary_takes_four_bytes(
    tmp_path: Path, cache: Path, prepared: Callable
) -> None:
    ranks = {bytes([i]): i for i in range(256)}
    for first, second in itertools.product(range(256), repeat=2):
        ranks[bytes([first, second])] = len(ranks)
    large = Tokenizer("large", ranks)
    text = tmp_path / "a.txt"
    text.write_text("zzzz yyyy " * 40 + "\nend\n")
    path = prepared(text, tokenizer=large, cache_dir=cache)
    tokens = np.fromfile(path, dtype=np.uint32)
    assert (
        json.loads(path.with_suffix(".json").read_text())["dtype"] == "uint32"
        and large.n_vocab > 65536
    )
    assert text.read_text().startswith(large.decode(tokens[1:-1].tolist()))
    x, _ = TokenDataset(path, 8, tokenizer=large)[0]
    assert x.tolist() == tokens[:8].tolist()


def test_a_shortened_file_is_refused(
    small: Path, prepared: Callable, sentence: Callable
) -> None:
    os.truncate(small, small.stat().st_size - 2)
    for use in (
        lambda: TokenDataset(small, 16),
        lambda: prepared("stories", cache_dir=small.parent, max_documents=60),
    ):
        with pytest.raises(SlmError) as error:
            use()
        assert "is damaged" in sentence(error)


def test_a_changed_bit_is_found(small: Path) -> None:
    TokenDataset(small, 16).verify()
    with open(small, "r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(SlmError, match="is damaged"):
        TokenDataset(small, 16).verify()


def test_lost_ends_are_found(small: Path) -> None:
    with open(small, "r+b") as file:
        file.write(b"\x01\x00")
    with pytest.raises(SlmError, match="does not begin and end"):
        TokenDataset(small, 16)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 2}', '{"format": 2, "tokens": 5, "dtype": "uint9"}'],
)
def test_a_damaged_sidecar_is_refused(
    small: Path, content: str, sentence: Callable
) -> None:
    small.with_suffix(".json").write_text(content)
    with pytest.raises(SlmError) as error:
        TokenDataset(small, 16)
    assert "is damaged" in sentence(error)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": True},
        {"documents": "60"},
        {"format": 2.0},
        {"dtype": "float16"},
        {"tokens_sha256": None},
        {"tokenizer": {"name": "stories", "fingerprint": "x", "eot_token": True}},
        {"tokenizer": {}},
        {"tokenizer": None},
    ],
    ids=str,
)
def test_a_sidecar_of_other_kinds_is_damaged(
    small: Path, wrong: dict[str, object], sentence: Callable
) -> None:
    about = json.loads(small.with_suffix(".json").read_text())
    small.with_suffix(".json").write_text(json.dumps(about | wrong))
    with pytest.raises(SlmError) as error:
        TokenDataset(small, 16)
    assert f"{small.with_suffix('.json')} is damaged" in sentence(error)


def test_another_format_is_refused_whatever_else_it_holds(small: Path) -> None:
    small.with_suffix(".json").write_text('{"format": 99}')
    with pytest.raises(SlmError, match="has format 99"):
        TokenDataset(small, 16)


def test_tokens_without_a_sidecar_are_made_anew(
    small: Path, prepared: Callable
) -> None:
    right = small.read_bytes()
    small.with_suffix(".json").unlink()
    small.write_bytes(right[:100])
    with pytest.raises(SlmError, match="does not exist"):
        TokenDataset(small, 16)
    assert prepared("stories", cache_dir=small.parent, max_documents=60) == small
    assert small.read_bytes() == right


def test_ids_of_another_tokenizer_are_refused(small: Path, sentence: Callable) -> None:
    bytes_only = Tokenizer("bytes", {bytes([i]): i for i in range(256)})
    with pytest.raises(SlmError) as error:
        TokenDataset(small, 16, tokenizer=bytes_only)
    assert "tokenizer 'stories'" in sentence(error) and "not of 'bytes'" in str(
        error.value
    )


def loader(cache: Path, **options: object) -> TokenLoader:
    settings = {"batch_size": 8, "context_length": 32, "max_documents": 100, **options}
    return create_dataloader(
        "stories", tokenizer=TOKENIZER, cache_dir=cache, **settings
    )  # type: ignore[arg-type]


def test_another_process_gets_the_path_and_not_the_tokens(cache: Path) -> None:
    dataset = loader(cache, max_documents=2000).dataset
    sent = pickle.dumps(dataset)
    assert len(sent) < 50_000 < dataset.path.stat().st_size  # type: ignore[union-attr]
    copy = pickle.loads(sent)
    assert (
        torch.equal(copy[5][0], dataset[5][0])
        and copy.tokenizer.fingerprint == TOKENIZER.fingerprint
    )


def test_a_loader_goes_to_a_spawned_process(cache: Path) -> None:
    batches = loader(cache, num_workers=2)
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        theirs = pool.submit(TokenLoader.batch, batches, 70).result(timeout=300)
    assert torch.equal(theirs[0], batches.batch(70)[0])


def test_a_path_may_be_given_either_way(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(stories.sample(0) + "\n" + stories.sample(1))
    by_path = create_dataloader(
        dataset_path=str(file), tokenizer="stories", context_length=8, cache_dir=cache
    )
    by_name = create_dataloader(
        str(file), tokenizer="stories", context_length=8, cache_dir=cache
    )
    assert torch.equal(by_path.batch(0)[0], by_name.batch(0)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "val_fraction = 0.0 is not allowed"),
        ({"val_fraction": 1.5}, "val_fraction = 1.5 is not allowed"),
        ({"max_documents": 0}, "max_documents = 0 is not allowed"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"packing": "tight"}, "packing = 'tight' is not allowed"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers = -1 is not allowed"),
        ({"seed": -1}, "seed is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"context_length": 0}, "context_length is 0"),
        (
            {"context_length": 10_000},
            "fewer than the 10001 that one row of context_length=10000 needs: take more "
            "text, a smaller context_length, or a larger val_fraction.",
        ),
        ({"dataset_path": "x"}, "one of the two"),
        ({"dataset_name": None}, "one of the two"),
    ],
)
def test_bad_arguments_are_one_sentence(
    options: dict, message: str, cache: Path
) -> None:
    common = {
        "dataset_name": "stories",
        "tokenizer": TOKENIZER,
        "cache_dir": cache,
        "max_documents": 20,
        "context_length": 16,
    }
    with pytest.raises(SlmError) as error:
        create_dataloader(**{**common, **options})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_saved_tokenizer_may_be_given_as_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Mia has a kite. " * 50)
    given = [TOKENIZER, TOKENIZER.save(tmp_path / "saved"), str(tmp_path / "saved")]
    text = {"dataset_path": tmp_path / "a.txt", "cache_dir": tmp_path / "cache"}
    paths = {
        create_dataloader(tokenizer=t, context_length=8, **text).dataset.path
        for t in given
    }
    assert len(paths) == 1


def test_gpt2_ids_of_a_text_file(
    gpt2_cache: object, tmp_path: Path, cache: Path
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("hello world\n" * 100)
    batches = create_dataloader(
        dataset_path=file,
        context_length=6,
        shuffle=False,
        batch_size=1,
        cache_dir=cache,
    )
    assert batches.batch(0)[0].tolist() == [[50256, 31373, 995, 198, 31373, 995]]


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_the_loaders_of_a_run_are_those_of_the_door(
    packing: str, cache: Path, config: Callable
) -> None:
    data = config("stories", max_documents=200, packing=packing, num_workers=1)
    train, validation = make_loaders(
        data, TOKENIZER, 32, 4, seed=3, rank=1, world_size=2
    )
    options = {
        "batch_size": 4,
        "seed": 3,
        "rank": 1,
        "world_size": 2,
        "packing": packing,
    }
    expected = loader(cache, max_documents=200, **options)
    for step in (0, 7, 100):
        assert torch.equal(train.batch(step)[0], expected.batch(step)[0])
    assert (train.shuffle, validation.shuffle) == (True, False)
    assert train.num_workers == validation.num_workers == 1
    own = loader(cache, max_documents=200, split="validation", shuffle=False, **options)
    assert torch.equal(validation.batch(2)[1], own.batch(2)[1])


def test_the_recorded_benchmark_is_whole() -> None:
    command, header, *rows = (
        Path("benchmarks/results/loader.csv").read_text().splitlines()
    )
    assert command.startswith("# python benchmarks/loader.py --save; ")
    assert header == "megabytes,loader,anonymous_mb,m_tokens_per_cpu_s"
    found = list(csv.reader(rows))
    assert {row[1] for row in found} == {"list", "map, per row", "slm"}
    assert {float(row[0]) for row in found if row[1] == "slm"} >= {10, 100, 1000}


def test_stale_token_files_are_told_and_removed_only_on_request(
    tmp_path: Path, cache: Path, prepared: Callable, capsys: pytest.CaptureFixture
) -> None:
    texts = tmp_path / "own.txt"
    made = []
    for n in range(3):
        texts.write_text("Once upon a time.\n\n" * (100 + n))
        made.append(prepared(texts, cache_dir=cache))
        os.utime(made[-1], ns=(10**18 + n, 10**18 + n))
    other = prepared(texts, "validation", cache_dir=cache)
    torn = cache / "torn.tokens"
    torn.write_bytes(b"abc")
    listed = {file.path: file.stale for file in token_files(cache)}
    assert listed[made[2]] == listed[other] == ""
    assert "there is a later one" in listed[made[0]] == listed[made[1]]
    assert "torn.json does not exist" in listed[torn]

    assert cli.main(["data", str(cache)]) == 0
    said = capsys.readouterr().out
    assert "5 token files; 3 (" in said and "--remove-stale deletes them" in said
    assert all(path.exists() for path in (*made, other, torn))

    assert cli.main(["data", str(cache), "--remove-stale"]) == 0
    left = {path.name for path in cache.iterdir() if not path.name.startswith(".")}
    kept = (made[2], other)
    assert left == {p.name for path in kept for p in (path, path.with_suffix(".json"))}
    assert cli.main(["data", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
