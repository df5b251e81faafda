"""A GPT-2-class language model in PyTorch, from the chapters of "SLM From Scratch".

    run = slm.train(slm.load_config("configs/stories_cpu.yaml"))

The names below are loaded when they are first used, so that `import slm` is quick.

Exported from chapters/19_door.py; edit it there.
"""

import importlib
from typing import TYPE_CHECKING, Any

# `python -m slm` and `import slm`

if TYPE_CHECKING:
    from slm.data.batches import TextDataset as TextDataset
    from slm.data.dataset import TokenDataset as TokenDataset
    from slm.data.dataset import create_dataloader as create_dataloader
    from slm.data.tokenizer import get_tokenizer as get_tokenizer
    from slm.generation import generate as generate
    from slm.generation import stream as stream
    from slm.model.attention import MultiHeadAttention as MultiHeadAttention
    from slm.model.attention import causal_attention as causal_attention
    from slm.model.blocks import FeedForward as FeedForward
    from slm.model.blocks import TransformerBlock as TransformerBlock
    from slm.model.config import GPTConfig as GPTConfig
    from slm.model.gpt import GPT as GPT
    from slm.training.config import load_config as load_config
    from slm.training.run import load_run as load_run
    from slm.training.run import train as train
    from slm.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

_ADDRESSES = {
    "MultiHeadAttention": "slm.model.attention",
    "causal_attention": "slm.model.attention",
    "FeedForward": "slm.model.blocks",
    "TransformerBlock": "slm.model.blocks",
    "GPTConfig": "slm.model.config",
    "GPT": "slm.model.gpt",
    "get_tokenizer": "slm.data.tokenizer",
    "TextDataset": "slm.data.batches",
    "TokenDataset": "slm.data.dataset",
    "create_dataloader": "slm.data.dataset",
    "load_config": "slm.training.config",
    "Trainer": "slm.training.trainer",
    "load_run": "slm.training.run",
    "train": "slm.training.run",
    "generate": "slm.generation",
    "stream": "slm.generation",
}
__all__ = list(_ADDRESSES)


def __getattr__(name: str) -> Any:
    if name in _ADDRESSES:
        return getattr(importlib.import_module(_ADDRESSES[name]), name)
    raise AttributeError(f"module 'slm' has no attribute {name!r}")
