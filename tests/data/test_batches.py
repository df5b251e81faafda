"""slm.data.batches: rows and targets, the order of batches, and how a loader resumes."""

import itertools
import json
import random
import threading
import time
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from slm.data import stories
from slm.data.batches import (
    RowDataset,
    TextDataset,
    TokenLoader,
    encode,
    epoch_order,
    fill_batch,
    map_ahead,
)
from slm.data.tokenizer import get_tokenizer
from slm.errors import SlmError

TOKENIZER = get_tokenizer("stories")
EOT = TOKENIZER.eot_token


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
    assert (
        targets == strip[1 : 1 + len(dataset) * T] and len(strip) - 1 - len(targets) < T
    )


def naive_packing(
    strip: list[int], T: int, eot: int
) -> list[tuple[list[int], list[int]]]:
    """Whole documents into rows, one at a time, by the definition."""
    rows, start, end = [], 0, len(strip) - 1
    while start < end:
        stop = max(
            (i for i in range(start + 1, min(start + T, end) + 1) if strip[i] == eot),
            default=start + T,
        )
        fill = T - (stop - start)
        rows.append(
            (
                strip[start:stop] + [eot] * fill,
                strip[start + 1 : stop + 1] + [-100] * fill,
            )
        )
        start = stop
    return rows


@pytest.mark.parametrize("T", [1, 2, 7, 16, 64])
@pytest.mark.parametrize("seed", range(4))
def test_document_rows_equal_the_definition(T: int, seed: int) -> None:
    draw = random.Random(seed)
    strip = [0]
    for _ in range(draw.choice([1, 2, 40])):
        strip += [
            draw.randrange(1, 9)
            for _ in range(draw.choice([1, 3, T, T - 1 or 1, 2 * T, 5 * T + 3]))
        ] + [0]
    dataset = RowDataset(np.array(strip), T, 0, "documents", "strip")
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
    batches = list(
        torch.utils.data.DataLoader(
            TextDataset([stories.sample(0)], TOKENIZER, 8), batch_size=4
        )
    )
    assert batches[0][0].shape == (4, 8) and torch.equal(
        batches[0][0][0, 1:], batches[0][1][0, :-1]
    )


@pytest.mark.parametrize("name", ["context_length", "packing"])
def test_a_wrong_way_to_cut_is_one_sentence(name: str) -> None:
    wrong = {"context_length": 0, "packing": "tight"}[name]
    options = {"context_length": 8, "packing": "stream", name: wrong}
    with pytest.raises(SlmError, match=f"^{name} is {wrong!r}; it must be"):
        TextDataset([stories.sample(0)], TOKENIZER, **options)  # type: ignore[arg-type]


def test_too_little_text_is_one_sentence() -> None:
    with pytest.raises(
        SlmError, match=r"documents: 1\).* fewer than the 1001 that one row"
    ):
        TextDataset([stories.sample(0)], TOKENIZER, 1000)


def test_no_text_at_all_is_one_sentence() -> None:
    with pytest.raises(SlmError, match=r"documents: 0\) holds no document"):
        TextDataset([""], TOKENIZER, 8, packing="documents")


def test_a_run_of_spaces_too_long_for_the_pattern_is_cut():
    text = "a" + " " * 1_200_000 + "b"
    assert TOKENIZER.decode(encode(text, TOKENIZER).tolist()) == text


# the loader


@cache
def rows(n: int, context_length: int, packing: str) -> TextDataset:
    texts = [stories.sample(seed) for seed in range(n)]
    return TextDataset(texts, TOKENIZER, context_length, packing)


def loader(
    n: int = 100, context_length: int = 32, packing: str = "stream", **options: object
) -> TokenLoader:
    settings = {"batch_size": 8, **options}
    return TokenLoader(rows(n, context_length, packing), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_each_row_comes_once_per_epoch(packing: str, batch_size: int) -> None:
    batches = loader(packing=packing, batch_size=batch_size)
    n_rows = len(batches.dataset)
    steps = -(-3 * n_rows // batch_size)
    dealt = np.concatenate([batches.indices(step) for step in range(steps)])
    assert len(dealt) == steps * batch_size
    epochs = dealt[: 3 * n_rows].reshape(3, n_rows)
    for epoch in epochs:
        assert sorted(epoch) == list(range(n_rows))
    assert (
        not (epochs[0] == epochs[1]).all()
        and not (epochs[0] == np.arange(n_rows)).all()
    )


def test_batches_hold_the_rows_that_the_strip_has() -> None:
    batches = loader()
    tokens = batches.dataset.tokens
    x, y = batches.batch(3)
    for row, index in enumerate(batches.indices(3)):
        assert x[row].tolist() == tokens[index * 32 : index * 32 + 32].tolist()
        assert y[row].tolist() == tokens[index * 32 + 1 : index * 32 + 33].tolist()
    assert x.dtype == y.dtype == torch.int64 and x.numel() == 256
    assert (
        batches.steps_per_epoch == -(-((len(tokens) - 1) // 32) // 8)
        and batches.tokenizer is TOKENIZER
    )


def test_an_epoch_for_validation_has_each_target_once() -> None:
    for options in (
        {"batch_size": 7},
        {"batch_size": 7, "num_workers": 2},
        {"batch_size": 10**4},
    ):
        batches = loader(**options)
        targets = torch.cat([y.flatten() for _, y in batches.epoch_batches()])
        assert targets.tolist() == batches.dataset.tokens[1 : len(targets) + 1].tolist()
        assert len(targets) == len(batches.dataset) * 32 and batches.step == 0


def test_order_depends_on_seed_and_step_alone() -> None:
    one, two = loader(seed=5), loader(seed=5)
    later = two.batch(500)
    assert torch.equal(later[0], one.batch(500)[0])
    assert all(
        torch.equal(a[0], one.batch(step)[0])
        for step, a in enumerate(itertools.islice(two, 30))
    )
    assert not torch.equal(one.batch(0)[0], loader(seed=6).batch(0)[0])
    assert np.array_equal(loader(shuffle=False).indices(1), np.arange(8, 16))


def test_the_order_is_frozen() -> None:
    """A resumed run needs the order that another version of numpy gave."""
    assert epoch_order(10, 0, 0).tolist() == [3, 7, 6, 4, 1, 0, 2, 8, 5, 9]
    assert epoch_order(10, 3, 7).tolist() == [4, 5, 9, 6, 0, 1, 2, 3, 7, 8]


@pytest.mark.parametrize("workers", [(0, 0), (0, 3), (3, 0), (2, 2)])
@pytest.mark.parametrize("stop", [0, 1, 37, 110])
def test_resuming_gives_the_batches_of_a_run_without_a_break(
    workers: tuple[int, int], stop: int
) -> None:
    whole = [x for x, _ in itertools.islice(loader(), 130)]
    first = loader(num_workers=workers[0])
    before = [x for x, _ in itertools.islice(first, stop)]
    state = json.loads(json.dumps(first.state_dict()))
    assert state == {"seed": 0, "step": stop}
    second = loader(seed=99, num_workers=workers[1])
    second.load_state_dict(state)
    after = [x for x, _ in itertools.islice(second, 130 - stop)]
    assert all(map(torch.equal, before + after, whole)) and len(before + after) == 130


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_are_the_single_process(world_size: int) -> None:
    single = loader(batch_size=8)
    ranks = [
        loader(batch_size=8 // world_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {rank.steps_per_epoch for rank in ranks} == {single.steps_per_epoch}
    for step in (0, 1, single.steps_per_epoch - 1, single.steps_per_epoch, 200):
        assert torch.equal(
            torch.cat([rank.batch(step)[0] for rank in ranks]), single.batch(step)[0]
        )
    rows = [
        row for rank in ranks for _, y in rank.epoch_batches() for row in y.tolist()
    ]
    assert sorted(rows) == sorted(
        row for _, y in single.epoch_batches() for row in y.tolist()
    )


def test_leaving_a_loader_early_leaves_no_thread() -> None:
    batches = iter(loader(num_workers=3))
    before = set(threading.enumerate())
    next(batches)
    ours = set(threading.enumerate()) - before
    batches.close()  # type: ignore[attr-defined]
    assert ours and not ours & set(threading.enumerate())


def test_an_error_in_a_thread_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda n: 1 // n, [2, 1, 0, 1], 2))
    assert list(map_ahead(str, range(20), 3)) == list(map(str, range(20)))


def test_batches_are_pinned_only_where_that_is_of_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loader().pin_memory == torch.cuda.is_available()
    monkeypatch.setattr(
        Tensor, "pin_memory", lambda batch: batch + 1
    )  # what marks a batch as pinned here
    pinned, plain = (
        loader(pin_memory=True).batch(0),
        loader(pin_memory=False).batch(0),
    )
    assert torch.equal(pinned[0], plain[0] + 1) and torch.equal(pinned[1], plain[1] + 1)


def test_only_two_orders_are_kept() -> None:
    batches = loader(batch_size=len(loader().dataset))
    for step in range(5):
        batches.indices(step)
    assert epoch_order.cache_info().currsize <= 2


def test_three_times_as_fast_as_a_default_dataloader() -> None:
    batches = loader(batch_size=32, context_length=256, n=2000)
    plain = torch.utils.data.DataLoader(batches.dataset, batch_size=32, shuffle=True)

    def seconds(rows: object, n: int) -> float:
        began = time.process_time()
        assert sum(1 for _ in itertools.islice(rows, n)) == n  # type: ignore[call-overload]
        return (time.process_time() - began) / n

    next(iter(batches)), next(iter(plain))
    slow = min(
        seconds(itertools.chain.from_iterable(itertools.repeat(plain)), 60)
        for _ in range(3)
    )
    fast = min(seconds(batches, 60) for _ in range(3))
    assert slow > 3 * fast, f"{slow / fast:.1f} times as fast"


def test_a_seed_beyond_numpys_is_refused_at_once():
    rows = TextDataset(["hello there " * 50], TOKENIZER, 4)
    with pytest.raises(SlmError, match=r"below 2\*\*32"):
        TokenLoader(rows, 2, seed=1 << 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1."),
        ({"num_workers": -1}, "num_workers is -1; it must be at least 0."),
        ({"seed": -1}, "seed is -1; it must be at least 0."),
        (
            {"rank": 2, "world_size": 2},
            "rank is 2 with world_size 2; it must be 0 or more and below world_size.",
        ),
    ],
)
def test_a_number_out_of_range_is_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(SlmError) as error:
        loader(**options)
    assert str(error.value) == message


def test_a_batch_is_filled_up_with_rows_that_hold_no_target():
    x, y = torch.randint(9, (2, 3, 5))
    wide_x, wide_y = fill_batch(x, y, 4)
    assert wide_x.shape == wide_y.shape == (4, 5)
    assert torch.equal(wide_x[:3], x) and torch.equal(wide_y[:3], y)
    assert not wide_x[3].any() and (wide_y[3] == -100).all()
