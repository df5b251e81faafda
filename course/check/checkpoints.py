"""The check of the exercise of the chapter on checkpoints."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course.check.verdict import exercise
from slm.model.config import GPTConfig
from slm.model.gpt import GPT


@exercise
def resume(
    save: Callable[[GPT, torch.optim.Optimizer, int], dict[str, Any]],
    load: Callable[[dict[str, Any], GPT, torch.optim.Optimizer], int],
) -> str:
    """Check a `save(model, optimizer, step)` and a `load(state, model, optimizer)` that continue a run exactly."""

    def fresh(seed: int) -> tuple[GPT, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = GPT(
            GPTConfig(
                vocab_size=20,
                context_length=8,
                n_layers=1,
                n_heads=2,
                d_model=8,
                d_ff=16,
                dropout=0.3,
            )
        )
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train(model: GPT, optimizer: torch.optim.Optimizer, steps: range) -> Tensor:
        for step in steps:
            x, y = torch.randint(
                20, (2, 3, 8), generator=torch.Generator().manual_seed(step)
            )  # (B, T) each
            model.loss(x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        return weights_of(model)

    with torch.random.fork_rng():
        model, optimizer = fresh(1)
        train(model, optimizer, range(3))
        weights, random = weights_of(model), torch.get_rng_state()
        averages = copy.deepcopy(optimizer.state_dict()["state"])
        state = save(model, optimizer, 3)
        assert isinstance(state, dict), (
            f"my_save should return a dictionary; yours returns {type(state).__name__}."
        )
        assert torch.equal(torch.get_rng_state(), random), (
            "my_save draws random numbers, so saving changes the run."
        )
        assert model.training, (
            "my_save leaves the model in eval mode, so the run goes on without dropout."
        )
        whole_things = [
            key
            for key, value in state.items()
            if isinstance(value, nn.Module | torch.optim.Optimizer)
        ]
        assert not whole_things, (
            f"{whole_things} are whole objects, which no file can hold safely. Put in what they know: a copy of their state_dict()."
        )
        odd = sorted(
            {
                type(leaf).__name__
                for leaf in _leaves(state)
                if not isinstance(leaf, SAFE)
            }
        )
        assert not odd, (
            f"The dictionary holds {odd}; use tensors, numbers and texts, which a checkpoint can hold safely."
        )
        taken = copy.deepcopy(state)
        whole = train(model, optimizer, range(3, 6))
        assert _equal(state, taken), (
            "The dictionary changed while the run went on: state_dict() hands out the live tensors. Copy them: copy.deepcopy(…)."
        )
        model, optimizer = fresh(2)
        done = load(taken, model, optimizer)
        after = torch.get_rng_state()
        assert torch.equal(weights_of(model), weights), (
            "The weights are not back: model.load_state_dict(…)."
        )
        assert _equal(optimizer.state_dict()["state"], averages), (
            "AdamW's running averages are not back, so the first steps go off in another direction: save optimizer.state_dict() and load it again."
        )
        assert torch.equal(after, random), (
            "The random numbers go on from another place, so dropout draws other masks. Save torch.get_rng_state(), and set it again; a seed says where they began, not where they are."
        )
        assert done == 3, (
            f"my_load should return the number of steps done, 3; yours returns {done!r}."
        )
        assert torch.equal(train(model, optimizer, range(3, 6)), whole), (
            "All parts are back, and yet the weights differ after three more steps. Does my_load leave the model in training mode?"
        )
    return "The run goes on to the last bit."


def weights_of(model: GPT) -> Tensor:
    """All weights of a model in one vector, copied."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


SAFE = (Tensor, np.ndarray, int, float, str, bytes, type(None))


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in nested dictionaries and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    for part in value:
        yield from _leaves(part)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict)
            and a.keys() == b.keys()
            and all(_equal(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)
