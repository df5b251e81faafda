"""A GPT-2-class language model in PyTorch: the package that the chapters of "SLM From Scratch" build.

The names below are loaded when they are first used, so that `import slm` is quick.

Exported from chapters/08_cost.py; edit it there.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.attention import MultiHeadAttention as MultiHeadAttention
    from slm.attention import causal_attention as causal_attention
    from slm.blocks import FeedForward as FeedForward
    from slm.blocks import TransformerBlock as TransformerBlock
    from slm.config import load_config as load_config
    from slm.data import TextDataset as TextDataset
    from slm.data import create_dataloader as create_dataloader
    from slm.generation import generate as generate
    from slm.generation import stream as stream
    from slm.gpt import GPT as GPT
    from slm.gpt import GPTConfig as GPTConfig
    from slm.tokenizer import get_tokenizer as get_tokenizer
    from slm.trainer import Trainer as Trainer
    from slm.trainer import load_run as load_run
    from slm.trainer import train as train


_MODULES = {
    "MultiHeadAttention": "attention",
    "causal_attention": "attention",
    "FeedForward": "blocks",
    "TransformerBlock": "blocks",
    "load_config": "config",
    "TextDataset": "data",
    "create_dataloader": "data",
    "generate": "generation",
    "stream": "generation",
    "GPT": "gpt",
    "GPTConfig": "gpt",
    "get_tokenizer": "tokenizer",
    "Trainer": "trainer",
    "load_run": "trainer",
    "train": "trainer",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"slm.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'slm' has no attribute {name!r}")
