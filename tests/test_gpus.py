"""slm.gpus: one table of GPUs, and price tables of one's own."""

import subprocess
import sys

import pytest
import yaml

from slm.errors import SlmError
from slm.gpus import ALIASES, MODAL, load_prices, peak_tflops
from slm.training.config import ModalConfig


def test_every_gpu_that_modal_rents_has_a_price_and_a_peak():
    for name in [*ALIASES, *(gpu.name for gpu in MODAL.gpus)]:
        found = MODAL.find(name)
        assert found.dollars_per_second > 0 and found.peak_tflops > 0
        assert ModalConfig(gpu=name).gpu_name == name
    assert MODAL.find("A100").name == "A100-40GB"
    assert MODAL.find("H100!").name == "H100"
    assert MODAL.find("B200+").name == "B200"
    assert [gpu.name for gpu in MODAL.gpus if not gpu.bfloat16] == ["T4"]


def test_unknown_gpu_is_one_sentence():
    with pytest.raises(SlmError, match="no price for GPU 'V100'.* has T4, L4"):
        MODAL.find("V100")


def test_the_limit_is_the_one_that_a_config_obeys():
    for gpu in MODAL.gpus:
        assert ModalConfig(gpu=f"{gpu.name}:{gpu.limit}").gpu_count == gpu.limit
        with pytest.raises(SlmError, match=f"1 to {gpu.limit} can be had"):
            ModalConfig(gpu=f"{gpu.name}:{gpu.limit + 1}")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("Tesla T4", 65),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 500),
        ("Quadro RTX 6000", None),
        ("GeForce", None),
    ],
)
def test_the_peak_is_found_by_the_name_that_the_driver_gives(name, peak):
    assert peak_tflops(name) == peak


def test_prices_from_a_file(tmp_path):
    path = tmp_path / "prices.yaml"
    table = MODAL.model_dump(mode="json") | {"date": "2030-01-01"}
    for gpu in table["gpus"]:
        gpu["dollars_per_second"] *= 2
        del gpu["limit"]  # which says nothing of a price
    path.write_text(yaml.safe_dump(table))
    prices = load_prices(path)
    assert str(prices.date) == "2030-01-01"
    twice = 2 * MODAL.find("T4").dollars_per_second
    assert prices.find("T4").dollars_per_second == twice


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"gpus": []}, "gpus"),
        ({"date": None}, "date"),
        ({"colour": "red"}, "colour is not a key"),
        ({"dollars_per_core_second": -1}, "dollars_per_core_second"),
    ],
)
def test_a_bad_price_file_is_named(tmp_path, change, sentence):
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(MODAL.model_dump(mode="json") | change))
    with pytest.raises(SlmError, match=f"prices.yaml: {sentence}") as error:
        load_prices(path)
    assert "\n" not in str(error.value)


def test_a_date_needs_no_quotes(tmp_path):
    path = tmp_path / "prices.yaml"
    text = yaml.safe_dump(MODAL.model_dump(mode="json"), default_style='"')
    for date in ("2026-07-01", '"2026-07-01"', "'2026-07-01'"):
        path.write_text(text.replace('"2026-07-01"', date))
        assert load_prices(path) == MODAL


@pytest.mark.parametrize("date", ["2026-13-01", "2026-02-30", "yesterday", "7", "null"])
def test_a_day_that_is_none_is_one_sentence(tmp_path, date):
    path = tmp_path / "prices.yaml"
    text = yaml.safe_dump(MODAL.model_dump(mode="json"))
    path.write_text(text.replace("'2026-07-01'", date))
    with pytest.raises(SlmError, match=f"^{path}: date: .*, not '{date}'") as error:
        load_prices(path)
    assert "\n" not in str(error.value)


def test_all_mistakes_of_a_price_file_are_told(tmp_path):
    path = tmp_path / "prices.yaml"
    table = MODAL.model_dump(mode="json") | {"date": "soon", "colour": "red"}
    del table["source"]
    table["gpus"][1]["memory_gb"] = "much"
    path.write_text(yaml.safe_dump(table))
    with pytest.raises(SlmError) as error:
        load_prices(path)
    lines = str(error.value).splitlines()
    keys = ["source is missing", "date: ", "gpus.1.memory_gb: ", "colour is"]
    found = [any(line.startswith(f"{path}: {key}") for line in lines) for key in keys]
    assert found == [True] * 4 and len(lines) == 4


def test_a_price_that_is_an_alias_of_aliases_is_told_in_short(tmp_path):
    """Written out, it would be a text of 2 ** 60 words."""
    lines = [
        "a0: &a0 [1]",
        *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)),
    ]
    path = tmp_path / "prices.yaml"
    table = MODAL.model_dump(mode="json")
    del table["dollars_per_gib_second"]
    more = "dollars_per_gib_second: *a59\n"
    path.write_text("\n".join(lines) + "\n" + yaml.safe_dump(table) + more)
    with pytest.raises(
        SlmError, match=r"dollars_per_gib_second: .*, not \[\["
    ) as error:
        load_prices(path)
    wrong = [line for line in str(error.value).splitlines() if "gib" in line]
    assert len(wrong) == 1 and len(wrong[0]) < 300


def test_a_price_file_that_is_no_text_is_one_sentence(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_bytes("source: Müller".encode("latin-1"))
    with pytest.raises(SlmError, match="prices.yaml cannot be read as text"):
        load_prices(path)


@pytest.mark.parametrize("text", ["gpus: [", "just words", ""])
def test_a_file_that_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(SlmError, match="prices.yaml"):
        load_prices(path)


def test_the_table_needs_no_pytorch():
    code = "import sys, slm.gpus; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True).strip() == "False"
