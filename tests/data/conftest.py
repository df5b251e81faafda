"""What the tests of texts and token files share: the stories' tokenizer, a cache, and short ways to ask."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slm.data.corpus import DataConfig
from slm.data.prepare import count_shards, join_tokens, prepare_tokens
from slm.data.tokenizer import Tokenizer, get_tokenizer
from slm.errors import SlmError


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return get_tokenizer("stories")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def config(cache: Path) -> Callable[..., DataConfig]:
    """A `DataConfig` of a source that may be a path; its token files go to `cache` unless said."""

    def made(
        source: object, cache_dir: object = cache, **options: object
    ) -> DataConfig:
        return DataConfig(str(source), cache_dir=str(cache_dir), **options)  # type: ignore[arg-type]

    return made


@pytest.fixture
def prepared(config: Callable, tokenizer: Tokenizer) -> Callable[..., Path]:
    """`prepare_tokens` of a source, with the options of its `DataConfig`."""

    def path(
        source: object,
        split: str = "train",
        part: tuple[int, int] | None = None,
        tokenizer: Tokenizer = tokenizer,
        **options: object,
    ) -> Path:
        return prepare_tokens(config(source, **options), split, tokenizer, part)

    return path


@pytest.fixture
def joined(config: Callable, tokenizer: Tokenizer) -> Callable[..., Path]:
    """`join_tokens` of n parts."""
    return lambda n, source, split, **options: join_tokens(
        config(source, **options), split, tokenizer, n
    )


@pytest.fixture
def shards(config: Callable, tokenizer: Tokenizer) -> Callable[..., int]:
    """`count_shards` of a source."""
    return lambda source, split, **options: count_shards(
        config(source, **options), split, tokenizer
    )


@pytest.fixture
def read() -> Callable[[Path], list[int]]:
    """The ids of a token file."""

    def ids(path: Path) -> list[int]:
        about = json.loads(path.with_suffix(".json").read_text())
        return np.fromfile(path, dtype=about["dtype"]).tolist()

    return ids


@pytest.fixture
def documents(read: Callable, tokenizer: Tokenizer) -> Callable[[Path], list[str]]:
    """The documents of a token file, decoded."""
    eot = tokenizer.eot_token

    def texts(path: Path) -> list[str]:
        ids = read(path)
        assert ids[0] == ids[-1] == eot
        groups = itertools.groupby(ids, lambda i: i == eot)
        return [tokenizer.decode(list(group)) for is_end, group in groups if not is_end]

    return texts


@pytest.fixture
def sentence() -> Callable[[pytest.ExceptionInfo[SlmError]], str]:
    """The text of an error, which must be one sentence."""

    def text(error: pytest.ExceptionInfo[SlmError]) -> str:
        told = str(error.value)
        assert "\n" not in told and told.endswith("."), told
        return told

    return text


@pytest.fixture
def same() -> Callable[[Path, Path], bool]:
    """Whether two token files and their sidecars are the same, names and bytes."""

    def equal(path: Path, right: Path) -> bool:
        pairs = [(path, right), (path.with_suffix(".json"), right.with_suffix(".json"))]
        return all(
            (a.name, a.read_bytes()) == (b.name, b.read_bytes()) for a, b in pairs
        )

    return equal


@pytest.fixture
def write_rows() -> Callable[[Path, str, list[str]], Path]:
    """Write texts as a file of rows, .jsonl or .parquet, into a folder."""

    def write(folder: Path, kind: str, texts: list[str]) -> Path:
        file = folder / f"rows.{kind}"
        if kind == "jsonl":
            rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
            file.write_text("\n".join([*rows, ""]))
        else:
            import pyarrow
            from pyarrow import parquet

            table = pyarrow.table({"id": range(len(texts)), "text": texts})
            parquet.write_table(table, file, row_group_size=100)
        return file

    return write
