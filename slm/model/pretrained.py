"""GPT-2's published format, which `transformers` opens, read and written.

    shape = read_shape(Path("runs/mine/model/config.json"))

Exported from chapters/90_files.py; edit it there.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slm.errors import SlmError, in_short
from slm.files import json_object, write_text, writing

# GPT-2's published format

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FINGERPRINT = "tokenizer_fingerprint"  # a key of the config, ours alone
GENERATION = "generation_config.json"
HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")

TABLES = {"token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f"}
PARTS = {
    "norm_1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm_2": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "d_ff": "n_inner",  # may be left out, and is 4 * n_embd then
}
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


def published_name(name: str) -> tuple[str, bool]:
    """Hugging Face's name of one of our parameters; whether it is stored transposed."""
    module, kind = name.rsplit(".", 1)
    if module in TABLES:
        return f"transformer.{TABLES[module]}.{kind}", False
    _, layer, part = module.split(".", 2)
    transposed = kind == "weight" and "norm" not in part
    return f"transformer.h.{layer}.{PARTS[part]}.{kind}", transposed


def told_of_generation(
    shape: Mapping[str, Any], tokenizer: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `config.json` and `generation_config.json` say of how texts are written.

    Args:
        shape: The model's sizes by our names.
        tokenizer: What has `eot_token`, `n_vocab` and `decode`; None if it is unknown.
    """
    end = None if tokenizer is None else tokenizer.eot_token
    config: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end}
    generation = {**config, "pad_token_id": end, "max_length": shape["context_length"]}
    if tokenizer is not None:
        config["prefix"] = tokenizer.decode([end])
        if padding := list(range(tokenizer.n_vocab, shape["vocab_size"])):
            generation["suppress_tokens"] = padding
    return config, generation


def write_pretrained(
    folder: Path,
    shape: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: Any = None,
) -> None:
    """Write a model's files, and its tokenizer's, each replaced in one step.

    Args:
        folder: Where to; it is made.
        shape: The model's sizes, and its dropout, by our names.
        weights: Its parameters by our names.
        tokenizer: As for `told_of_generation`; it is saved into the folder as well.

    Raises:
        OSError: The disk is full or not writable.
    """
    config, generation = told_of_generation(shape, tokenizer)
    published: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        **{theirs: shape[ours] for ours, theirs in SIZES.items()},
        "n_ctx": shape["context_length"],  # the older name, which converters read
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(DROPOUTS, shape["dropout"]),
        "tie_word_embeddings": True,
        **config,
    }
    if tokenizer is not None:
        published[FINGERPRINT] = tokenizer.fingerprint
    stored = {}
    for name, weight in weights.items():
        theirs, transposed = published_name(name)
        stored[theirs] = (weight.T if transposed else weight).cpu().contiguous()
    try:
        with writing(folder / WEIGHTS) as part:
            save_file(stored, part, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS} could not be written: {error}") from error
    if tokenizer is not None:
        tokenizer.save(folder, shape["context_length"])
    for name, said in {GENERATION: generation, CONFIG: published}.items():
        write_text(folder / name, json.dumps(said, indent=2) + "\n")


def known_tokenizer(folder: Path) -> str | None:
    """The fingerprint of the tokenizer whose ids the model knows, if it is told."""
    with contextlib.suppress(OSError):  # told when it is read
        told = json_object((folder / CONFIG).read_bytes(), {FINGERPRINT: str})
        return told and told[FINGERPRINT]
    return None


def find_pretrained(name_or_folder: str | Path) -> tuple[Path, Path]:
    """The config and the weights of a folder, or of a GPT-2 on the Hugging Face hub.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks a file; or the hub
            cannot be reached.
    """
    folder, name = Path(name_or_folder), str(name_or_folder)
    files = folder / CONFIG, folder / WEIGHTS
    if name in HUB and not folder.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            config, weights = (hf_hub_download(name, file.name) for file in files)
            files = Path(config), Path(weights)
        except OSError as error:  # what the hub answers, and that it does not, too
            why = "is not in the local cache and the Hugging Face hub cannot be reached"
            message = f"{name!r} {why}; connect once, or give a folder"
            raise FileNotFoundError(message) from error
    for file in files:
        if not file.is_file():
            takes = f"a folder with {CONFIG} and {WEIGHTS}, or a name like 'gpt2'"
            raise FileNotFoundError(f"{file} is not there; give {takes}")
    return files


# what a config must say, or leave out, to be that of our architecture
ONLY = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def read_shape(path: Path) -> dict[str, Any]:
    """The sizes and the dropout, by our names, that a `config.json` gives.

    Raises:
        SlmError: It is damaged, or of another architecture than GPT-2's; a line each.
    """
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SlmError(f"{path} is not a model's config: {error}") from None
    if not isinstance(theirs, dict):
        held = f"it holds {in_short(theirs)}, and an object is needed"
        raise SlmError(f"{path} is not a model's config: {held}")
    wrong = []
    for key, only in ONLY.items():
        said = theirs.get(key, None if key == "model_type" else only)
        if said != only:
            wrong.append(f"says {key} = {said!r}; only {only!r} can be loaded")
    needed = sorted(set(SIZES.values()) - {"n_inner"})
    if missing := [key for key in needed if theirs.get(key) is None]:
        lacks = f"lacks {', '.join(missing)}"
        wrong.append(f"{lacks}; a GPT-2 config has {', '.join(needed)}")
    # 0.1 is what a config that is silent means
    dropouts = [theirs.get(key, 0.1) for key in DROPOUTS]
    if dropouts.count(dropouts[0]) < len(dropouts):
        wrong.append(f"has different dropouts {dropouts}; one for all can be loaded")
    if wrong:
        raise SlmError("\n".join(f"{path} {sentence}" for sentence in wrong))
    theirs["n_inner"] = theirs.get("n_inner") or 4 * theirs["n_embd"]
    sizes = {ours: theirs[name] for ours, name in SIZES.items()}
    return sizes | {"dropout": dropouts[0]}


def read_weights(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The weights in a `model.safetensors`, by our names.

    Args:
        path: The file.
        shapes: For each parameter of the model, by our names, the shape that it has.

    Raises:
        SlmError: The file is damaged, or does not hold exactly these parameters, each
            of finite numbers.
    """
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise SlmError(f"{path} is not a whole safetensors file: {error}") from error
    stored = {name.removeprefix("transformer."): stored[name] for name in stored}
    weights = {}
    for name, shape in shapes.items():
        theirs, transposed = published_name(name)
        weight = stored.pop(theirs.removeprefix("transformer."), None)
        wanted = tuple(reversed(shape) if transposed else shape)
        if weight is None or tuple(weight.shape) != wanted:
            found = "nothing" if weight is None else f"shape {tuple(weight.shape)}"
            holds = f"{path} holds {found} for {theirs}"
            raise SlmError(f"{holds}; its config asks for {wanted}")
        real = weight.is_floating_point()
        if not real or not bool(weight.isfinite().all()):
            kind = "numbers that are not finite" if real else str(weight.dtype)
            raise SlmError(f"{path} holds {kind} in {theirs}: no model can use that")
        weights[name] = weight.T if transposed else weight
    table = weights["token_embedding.weight"]
    output = stored.pop("lm_head.weight", table)
    if not torch.equal(output.float(), table.float()):
        own = "has an output matrix of its own; GPT-2's is the token table"
        raise SlmError(f"{path} {own}")
    masks = (".attn.bias", ".attn.masked_bias")
    if unknown := [name for name in stored if not name.endswith(masks)]:
        layers = len({name.split(".")[1] for name in shapes if "blocks." in name})
        place = f"for which a model of {layers} layers has no place"
        raise SlmError(f"{path} holds {unknown[0]}, {place}")
    return weights
