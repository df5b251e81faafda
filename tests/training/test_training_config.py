"""slm.training.config: good files give what they say, and every bad one gets a sentence."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml

from slm.errors import SlmError
from slm.model.gpt import GPT
from slm.training import config as training_config
from slm.training.config import (
    SECTIONS,
    ModalConfig,
    TrainingConfig,
    changed_keys,
    load_config,
    make_config,
    shipped_configs,
)

ROOT = Path(__file__).resolve().parent.parent.parent
GOOD = {
    "model": {
        "vocab_size": 300,
        "context_length": 16,
        "n_layers": 1,
        "n_heads": 2,
        "d_model": 8,
        "d_ff": 16,
    },
    "data": {"dataset": "stories"},
}


def changed(path, value):
    """GOOD with one key set."""
    sections = {name: dict(section) for name, section in GOOD.items()}
    section, _, key = path.partition(".")
    if key:
        sections.setdefault(section, {})[key] = value
    else:
        sections[section] = value
    return sections


def test_defaults_fill_what_is_left_out():
    config = make_config(GOOD, name="mine")
    assert config.name == "mine"
    assert config.training == TrainingConfig() and config.modal == ModalConfig()
    assert config.model.d_model == 8 and config.model.dropout == 0.0


@pytest.mark.parametrize(
    "text", ["3e-4", "3E-4", "+3e-4", "3.0e-4", "3.e-4", "0.0003", ".0003", "30e-5"]
)
def test_a_number_is_a_number_however_it_is_written(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD) + f"training:\n  learning_rate: {text}\n")
    assert load_config(path).training.learning_rate == pytest.approx(3e-4)


@pytest.mark.parametrize(
    "text", ["010", "1:30", "2024-01-02", "0x10", "0b11", "!!int abc", "1٢", "1٢e3"]
)
def test_what_only_looks_like_a_number_is_none(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(SlmError, match="training.max_steps") as caught:
        load_config(path, [f"training.max_steps={text}"])
    assert "must be a valid integer" in str(caught.value) or "cannot be read" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("7", 7), ("1_000", 1000), ("+5", 5)]
)
def test_whole_numbers(tmp_path, text, value):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD) + f"training: {{seed: {text}}}\n")
    assert load_config(path).training.seed == value


def test_not_a_number_and_infinity_are_read_and_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump(GOOD) + "training: {learning_rate: .nan, weight_decay: -.inf}\n"
    )
    with pytest.raises(
        SlmError,
        match=r"learning_rate = nan is not allowed(.|\n)*weight_decay = -inf is not",
    ):
        load_config(path)


@pytest.mark.parametrize(
    ("key", "most"), [("training.threads", 1024), ("data.num_workers", 256)]
)
def test_threads_have_a_limit(key, most):
    """Far more than there are cores would end the process without a word."""
    with pytest.raises(
        SlmError,
        match=f"{key} = 100000 is not allowed; it must be less than or equal to {most}",
    ):
        make_config(changed(key, 100_000))


def test_a_key_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "training: {3: 4}\n")
    with pytest.raises(SlmError, match="training.3 is not a key; keys are texts"):
        load_config(path)


def test_an_override_fills_an_empty_section(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "training:\n")
    assert load_config(path, ["training.max_steps=300"]).training.max_steps == 300


def test_a_whole_number_is_a_float_where_one_is_due():
    assert make_config(changed("training.weight_decay", 0)).training.weight_decay == 0


def test_name_is_the_stem_and_overrides_win(tmp_path):
    path = tmp_path / "my_run.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    config = load_config(
        path,
        [
            "training.max_steps=200",
            "training.learning_rate=1e-3",
            "wandb.tags=[a, b]",
            "data.max_documents=null",
        ],
    )
    assert config.name == "my_run"
    assert (config.training.max_steps, config.training.learning_rate) == (200, 1e-3)
    assert config.wandb.tags == ["a", "b"] and config.data.max_documents is None


def test_written_and_read_again_is_equal(tmp_path):
    config = make_config(changed("training.learning_rate", 3e-5), name="again")
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


def test_gpu_names_and_counts():
    modal = make_config(changed("modal.gpu", "H100:8")).modal
    assert (modal.gpu_name, modal.gpu_count) == ("H100", 8)
    assert make_config(changed("modal.gpu", "T4")).modal.gpu_count == 1


BAD = [
    (
        "training.learning_rat",
        1e-3,
        "config: training.learning_rat is not a key; did you mean 'learning_rate'?",
    ),
    (
        "training.zzz",
        1,
        "config: training.zzz is not a key; allowed here are batch_size",
    ),
    ("trainin", {}, "config: trainin is not a key; did you mean 'training'?"),
    ("model.n_layer", 3, "did you mean 'n_layers'?"),
    ("model.n_heads", 3, "config: model: n_heads = 3 does not divide d_model = 8"),
    (
        "model.n_heads",
        0,
        "config: model.n_heads = 0 is not allowed; it must be greater than or equal to 1",
    ),
    (
        "model.n_layers",
        "four",
        "config: model.n_layers = 'four' is not allowed; it must be a valid integer",
    ),
    ("model.n_layers", 2.5, "model.n_layers = 2.5 is not allowed"),
    ("model.n_layers", True, "model.n_layers = True is not allowed"),
    ("model.vocab_size", -5, "model.vocab_size = -5"),
    (
        "model.dropout",
        1.5,
        "model.dropout = 1.5 is not allowed; it must be less than 1",
    ),
    ("model.dropout", None, "model.dropout = None"),
    (
        "model",
        None,
        "config: model = None is not allowed; it must be a section with keys of its own",
    ),
    ("model", [1, 2], "config: model = [1, 2] is not allowed; it must be a section"),
    (
        "data.dataset",
        "",
        "data.dataset = '' is not allowed; it must be a text that is not empty",
    ),
    ("data.dataset", 7, "data.dataset = 7 is not allowed; it must be a valid string"),
    (
        "data.packing",
        "tight",
        "data.packing = 'tight' is not allowed; it must be 'stream' or 'documents'",
    ),
    (
        "data.val_fraction",
        1,
        "data.val_fraction = 1 is not allowed; it must be less than 1",
    ),
    ("data.num_workers", -1, "data.num_workers = -1"),
    ("data.max_documents", 0, "data.max_documents = 0"),
    ("data.tokeniser", "gpt2", "did you mean 'tokenizer'?"),
    (
        "training",
        "fast",
        "config: training = 'fast' is not allowed; it must be a section",
    ),
    ("training.batch_size", 0, "training.batch_size = 0"),
    (
        "training.batch_size",
        "16",
        "training.batch_size = '16' is not allowed; it must be a valid integer",
    ),
    ("training.batch_size", 16.0, "training.batch_size = 16.0"),
    (
        "training.learning_rate",
        0,
        "training.learning_rate = 0 is not allowed; it must be greater than 0",
    ),
    ("training.learning_rate", float("nan"), "it must be a finite number"),
    ("training.learning_rate", float("inf"), "it must be a finite number"),
    ("training.learning_rate", "fast", "it must be a valid number"),
    ("training.learning_rate", [1], "training.learning_rate = [1]"),
    (
        "training.use_amp",
        "yes",
        "training.use_amp = 'yes' is not allowed; it must be a valid boolean",
    ),
    ("training.dtype", "fp16", "it must be 'auto', 'float32', 'bfloat16' or 'float16'"),
    ("training.optimizer", "sgd", "it must be 'adamw' or 'muon'"),
    ("training.adam_beta1", 1.0, "training.adam_beta1 = 1.0"),
    ("training.adam_eps", 0, "training.adam_eps = 0"),
    ("training.grad_clip", -1, "training.grad_clip = -1"),
    (
        "training.warmup_steps",
        5000,
        "config: training: warmup_steps = 5000 must be below max_steps = 1000",
    ),
    (
        "training.min_learning_rate",
        1.0,
        "config: training: min_learning_rate = 1.0 exceeds learning_rate = 0.0006",
    ),
    ("training.seed", -1, "training.seed = -1"),
    ("training.threads", 0, "training.threads = 0"),
    ("wandb.tags", "one", "wandb.tags = 'one'"),
    ("wandb.enabled", "always", "wandb.enabled = 'always'"),
    ("wandb.projct", "x", "did you mean 'project'?"),
    ("modal.gpu", "H1000", "config: modal.gpu = 'H1000': allowed are T4, L4"),
    ("modal.gpu", "A10:5", "of A10, 1 to 4 can be had"),
    ("modal.gpu", "T4:", "of T4, 1 to 8"),
    ("modal.gpu", "T4:x", "of T4, 1 to 8"),
    ("modal.gpu", 4, "modal.gpu = 4"),
    (
        "modal.timeout",
        90_000,
        "modal.timeout = 90000 is not allowed; it must be less than or equal to 86400",
    ),
    ("modal.timeout", 1.5, "modal.timeout = 1.5"),
    ("modal.max_dollars", 0, "modal.max_dollars = 0"),
    ("modal.memory_mib", 10, "modal.memory_mib = 10"),
]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    BAD,
    ids=[f"{path}={value!r}" for path, value, _ in BAD],
)
def test_each_mistake_gets_one_line(path, value, sentence):
    with pytest.raises(SlmError) as caught:
        make_config(changed(path, value))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


FIELDS = {
    name: {field.name: field.default for field in dataclasses.fields(cls)}
    for name, cls in SECTIONS.items()
}
KEYS = [(section, key) for section in SECTIONS for key in FIELDS[section]]


def generated():
    """Mistakes made from the schema itself, so that no key is forgotten: what is written where, and what must be said."""
    for section, key in KEYS:
        typo = key + key[-1]
        yield (
            f"{section}.{typo}",
            1,
            f"config: {section}.{typo} is not a key; did you mean '{key}'?",
        )
        yield (
            f"{section}.{key}",
            {"a": 1},
            f"config: {section}.{key} = {{'a': 1}} is not allowed; it must be ",
        )
        if [other for _, other in KEYS].count(key) == 1:
            other = "wandb" if section != "wandb" else "data"
            yield (
                f"{other}.{key}",
                1,
                f"config: {other}.{key} is not a key; did you mean '{section}.{key}'?",
            )


@pytest.mark.parametrize(
    ("path", "value", "sentence"), list(generated()), ids=lambda part: str(part)[:40]
)
def test_every_key_misspelt_misplaced_or_of_the_wrong_kind_is_named(
    path, value, sentence
):
    with pytest.raises(SlmError) as caught:
        make_config(changed(path, value))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_all_generated_mistakes_of_a_section_are_told_at_once():
    for section in SECTIONS:
        with pytest.raises(SlmError) as caught:
            make_config({**GOOD, section: dict.fromkeys(FIELDS[section], {"a": 1})})
        lines = str(caught.value).splitlines()
        assert [line.split(" = ")[0] for line in lines] == [
            f"config: {section}.{key}" for key in FIELDS[section]
        ]


def test_missing_keys_and_sections_are_named():
    with pytest.raises(SlmError) as caught:
        make_config({"model": {"vocab_size": 300}})
    lines = str(caught.value).splitlines()
    assert "config: data is missing; it has no default" in lines
    assert "config: model.d_model is missing; it has no default" in lines
    assert len(lines) == 6


def test_all_mistakes_of_a_file_come_at_once_with_its_name(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                **changed("training.batch_size", 0),
                "modal": {"gpu": "X"},
                "wandb": {"nam": "y"},
            }
        )
    )
    with pytest.raises(SlmError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: [1, 2", "line"),
        ("a: 1\na: 2", "the key 'a' is given twice"),
        ("just words", "holds str; sections are expected"),
        ("", "holds nothing; sections are expected"),
        ("- 1", "holds list"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, sentence):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SlmError, match="c.yaml") as caught:
        load_config(tmp_path / "c.yaml")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_folder_and_binary(tmp_path):
    with pytest.raises(SlmError, match="there is no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(SlmError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SlmError, match="cannot be read as text"):
        load_config(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    "override", ["max_steps=3", "training.max_steps", "training.max_steps=[", "nothing"]
)
def test_bad_overrides(tmp_path, override):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GOOD))
    with pytest.raises(SlmError, match="override"):
        load_config(tmp_path / "c.yaml", [override])


SHIPPED = {
    "stories_cpu": None,
    "gpt_124m": 124_439_808,
    "gpt_350m": 354_823_168,
    "gpt_774m": 774_030_080,
}


@pytest.mark.parametrize(("name", "parameters"), SHIPPED.items())
def test_shipped_configs_load_and_build(name, parameters):
    config = load_config(ROOT / f"configs/{name}.yaml")
    written = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
    assert set(written) == {"model", "training", "data", "wandb", "modal"}
    with torch.device("meta"):
        model = GPT(config.model)
    assert parameters is None or model.count_parameters() == parameters


def test_there_is_no_other_shipped_config():
    assert {path.stem for path in (ROOT / "configs").iterdir()} == set(SHIPPED)
    assert set(shipped_configs()) == set(SHIPPED)


def test_a_shipped_config_is_found_by_its_name_and_a_file_comes_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt_124m").mkdir()  # a run's folder is no config
    assert load_config("gpt_124m") == load_config(ROOT / "configs/gpt_124m.yaml")
    text = (ROOT / "configs/gpt_124m.yaml").read_text()
    (tmp_path / "gpt_350m").write_text(text)
    assert load_config("gpt_350m").model == load_config("gpt_124m").model


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("gpt_125m", "did you mean gpt_124m?"),
        ("configs/stories_cpu.yaml", "did you mean stories_cpu?"),
        ("mine.yaml", "they are gpt_124m, gpt_350m, gpt_774m, stories_cpu"),
    ],
)
def test_what_is_neither_a_file_nor_shipped(given, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SlmError) as refused:
        load_config(given)
    missing = "there is no such file, and no shipped config of that name"
    assert str(refused.value) == f"{given}: {missing}; {hint}"


@pytest.mark.parametrize("section", ["training", "wandb", "modal"])
def test_every_key_says_what_it_is(section):
    source = inspect.getsource(SECTIONS[section])
    said = re.findall(r'\n    (\w+): .*\n    """', source)
    assert said == list(FIELDS[section])


def test_every_setting_that_makes_another_run_is_compared(shape):
    c = make_config(
        {
            "model": shape,
            "data": {"dataset": "stories"},
            "training": {"dtype": "float32"},
        }
    ).as_dict()
    free = {
        "log_every",
        "eval_every",
        "eval_batches",
        "checkpoint_every",
        "keep_checkpoints",
        "sample_tokens",
    }
    free |= {"threads", "num_workers", "cache_dir"}
    for section in ("model", "training", "data"):
        for key in c[section]:
            changed = changed_keys({**c, section: {**c[section], key: "another"}}, c)
            assert len(changed) == (key not in free), (section, key)
    automatic = {
        **c,
        "training": {**c["training"], "dtype": "auto"},
    }  # what that came to stands in the checkpoint
    assert changed_keys(automatic, c) == changed_keys(c, automatic) == []


# what else a YAML file may hold


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("training: {use_amp: !!bool maybe}", "holds a value that cannot be read"),
        ("training: {max_steps: !!int ''}", "holds a value that cannot be read"),
        ("training: {max_steps: !!timestamp x}", "holds a value that cannot be read"),
        ("training: " + "[" * 20_000, "is nested too deeply"),
        ("training: {max_steps: '" + "x" * 10**6 + "'}", "must be a valid integer"),
        ("training: &t {max_steps: *t}", "must be a valid integer"),
        ("training:\n  seed: 1\n  max_steps: 2\n  seed: 3", "line 4 is not YAML: the"),
        ("training: {batch_size: 1" + "0" * 30 + "}", "less than or equal to 1000000"),
        ("training: {gradient_accumulation_steps: 1" + "0" * 12 + "}", "to 100000"),
        ("training: {max_steps: 1" + "0" * 400 + "}", "less than or equal to 1000"),
        ("modal: {gpu: 'H100:²'}", "of H100, 1 to 8 can be had"),
        ("modal: {gpu: 'H100:٢'}", "of H100, 1 to 8 can be had"),
        ("modal: {gpu: 'H100:01'}", "of H100, 1 to 8 can be had"),
    ],
    ids=lambda text: text[:40],
)
def test_whatever_stands_in_a_file_is_told_in_short_sentences(tmp_path, more, told):
    sections = {key: GOOD[key] for key in ("model", "data")}
    text = yaml.safe_dump(sections)
    (tmp_path / "run.yaml").write_text(f"{more}\n{text}")
    with pytest.raises(SlmError, match=re.escape(told)) as caught:
        load_config(tmp_path / "run.yaml")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_names_that_stand_for_names_are_not_written_out(tmp_path):
    bomb = "&a [x, x, x, x, x, x, x, x, x]"
    for new, old in zip("bcdefghij", "abcdefghi", strict=True):
        bomb += f", &{new} [{', '.join([f'*{old}'] * 9)}]"
    text = yaml.safe_dump({key: GOOD[key] for key in ("model", "data")})
    (tmp_path / "run.yaml").write_text(f"{text}training: {{max_steps: [{bomb}]}}\n")
    with pytest.raises(SlmError, match="must be a valid integer") as caught:
        load_config(tmp_path / "run.yaml")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("enabled", [0, 1, 0.0])
def test_what_only_equals_a_truth_value_is_refused(tmp_path, enabled):
    """As in every other setting, 1 is no true and 0 no false."""
    sections = {
        **{key: GOOD[key] for key in ("model", "data")},
        "wandb": {"enabled": enabled},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    told = f"wandb.enabled = {enabled}: allowed are true, false and auto"
    with pytest.raises(SlmError, match=told):
        load_config(tmp_path / "run.yaml")


def test_a_path_that_can_be_none_is_one_sentence():
    with pytest.raises(SlmError, match="cannot be read as text: embedded null byte"):
        load_config("a\0b")


def test_merges_of_merges_do_not_multiply(tmp_path):
    """Each level takes over nine times the keys of the one before: 9 ** 40 pairs."""
    lines = ["m0: &m0 {<<: {max_steps: 7, seed: 3}, seed: 5}"]
    for n in range(1, 40):
        taken = ", ".join([f"*m{n - 1}"] * 9)
        lines.append(f"m{n}: &m{n} {{<<: [{taken}], warmup_steps: {n}}}")
    text = yaml.safe_dump({key: GOOD[key] for key in ("model", "data")})
    text += "\n".join(lines) + "\ntraining: {<<: *m39, warmup_steps: 2}\n"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SlmError) as caught:
        load_config(tmp_path / "run.yaml")
    told = str(caught.value).splitlines()
    assert len(told) == 40 and all(" is not a key" in line for line in told)
    sections = training_config._read_yaml(text, "run.yaml")
    assert sections["training"] == {"max_steps": 7, "seed": 5, "warmup_steps": 2}
    assert sections["m0"] == {"max_steps": 7, "seed": 5}
    assert sections["m39"]["warmup_steps"] == 39


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: 3\ndata: \x01\n", r"run.yaml: line 2 is not YAML: it holds '\\x01'"),
        ("\0", r"run.yaml: line 1 is not YAML: it holds '\\x00'"),
        (
            "a: 1\n---\nb: 2\n",
            "line 2 is not YAML: expected a single document .* another",
        ),
        (
            "training: {batch_size: " + "9" * 5000 + "}",
            "batch_size = '9.*valid integer",
        ),
        ("training: {batch_size: =}", "batch_size = '=' .*valid integer"),
    ],
)
def test_what_yaml_cannot_hold_is_one_sentence(tmp_path, text, told):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SlmError, match=told) as caught:
        load_config(path)
    wrong = [
        line for line in str(caught.value).splitlines() if "is missing" not in line
    ]
    assert len(wrong) == 1 and len(wrong[0]) < 300


def test_a_mapping_may_take_over_the_keys_of_another(tmp_path):
    text = yaml.safe_dump({key: GOOD[key] for key in ("model", "data")})
    text += "training: {<<: {max_steps: 7, seed: 3}, warmup_steps: 2, seed: 4}\n"
    (tmp_path / "run.yaml").write_text(text)
    training = load_config(tmp_path / "run.yaml").training
    assert (training.max_steps, training.warmup_steps, training.seed) == (7, 2, 4)
