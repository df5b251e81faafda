"""The shape of a model, apart from the model, so that it can be read without loading PyTorch.

Exported from chapters/03_gpt.py; edit it there.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2-class model; the field names are those of a config file's `model:` section.

    Args:
        vocab_size: Number of token ids V.
        context_length: Most positions T that the model can see at once.
        n_layers: Number of blocks.
        n_heads: Attention heads per block; divides `d_model`.
        d_model: Width D of the residual stream.
        d_ff: Width of each feed-forward network's hidden layer.
        dropout: Probability of dropping a weight or channel in training, at least 0 and below 1.

    Raises:
        ValueError: A size is not a positive integer, `n_heads` does not divide `d_model`, or `dropout` is out of range.
    """

    vocab_size: int
    context_length: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "dropout" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} = {value!r} is not allowed; it must be an integer of at least 1")
        if self.d_model % self.n_heads:
            heads = f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}"
            raise ValueError(f"{heads}; heads share the channels equally")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout!r} is not allowed; it must be at least 0 and below 1")
