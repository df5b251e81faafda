"""The check of the exercise of the chapter on checkpoints."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course.check.diagnose import WrongKind, same, whole
from course.check.verdict import call, exercise, told
from slm.model.config import GPTConfig
from slm.model.gpt import GPT

Save = Callable[[GPT, torch.optim.Optimizer, int], dict[str, Any]]
Load = Callable[[dict[str, Any], GPT, torch.optim.Optimizer], int]
SAFE = (Tensor, np.ndarray, np.generic, int, float, str, bytes, bytearray, type(None))


@exercise
def resume(save: Save, load: Load) -> str:
    """Check a `save(model, optimizer, step)` and a `load(state, model, optimizer)` that continue a run exactly."""
    with torch.random.fork_rng():
        for step, n_layers in ((3, 1), (5, 2)):
            _resume(save, load, step, n_layers)
    return "The run goes on to the last bit."


def _resume(save: Save, load: Load, step: int, n_layers: int) -> None:
    """One run that is saved after `step` steps, goes on, and is gone on with."""
    model, optimizer = _fresh(1, n_layers)
    _train(model, optimizer, range(step))
    optimizer.param_groups[0]["lr"] = 3e-3  # as a schedule does
    then = copy.deepcopy(model.state_dict())
    moments, random = copy.deepcopy(optimizer.state_dict()), torch.get_rng_state()

    state = call(save, model, optimizer, step)
    assert isinstance(state, dict), (
        f"my_save returns {type(state).__name__}; it should return a dictionary."
    )
    assert torch.equal(torch.get_rng_state(), random), (
        "my_save moves the random numbers on (it draws some, or sets a seed), so saving changes the run."
    )
    assert same(dict(model.state_dict()), dict(then), 0, 0), (
        "my_save changes the model that it saves, so the run does not go on as it was."
    )
    assert same(optimizer.state_dict(), moments, 0, 0), (
        "my_save changes the optimizer that it saves, so the run does not go on as it was."
    )
    assert model.training, (
        "my_save leaves the model in eval mode, so the run goes on without dropout."
    )
    things = {type(leaf).__name__ for leaf in _leaves(state) if _is_object(leaf)}
    assert not things, (
        f"The dictionary holds a whole {' and a whole '.join(sorted(things))}, which no file can hold safely. Put in what it knows: a copy of its state_dict()."
    )
    odd = sorted({type(x).__name__ for x in _leaves(state) if not isinstance(x, SAFE)})
    assert not odd, (
        f"The dictionary holds {odd}; use tensors, numbers and texts, which a checkpoint can hold safely."
    )
    pickled = [x for x in _leaves(state) if isinstance(x, bytes) and b"torch.nn" in x]
    assert not pickled, (
        "A whole model stands in the dictionary, in the bytes of pickle; it can be read only while its code stays as it is. Put in what it knows: a copy of its state_dict()."
    )
    taken = copy.deepcopy(state)
    expected = _train(model, optimizer, range(step, step + 3))
    moved = [key for key in taken if not same(state.get(key), taken[key], 0, 0)]
    assert not moved, (
        f"What stands under {' and '.join(map(repr, moved))} changed while the run went on: state_dict() hands out the live tensors. Copy them: copy.deepcopy(…), or copy_to_cpu(…)."
    )

    model, optimizer = _fresh(2, n_layers)
    fresh, before = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    done = _loaded(load, state, model, optimizer)
    assert state.keys() == taken.keys(), (
        "my_load takes things out of the dictionary, so nobody can load it a second time. Read it with state[key]."
    )
    _same_weights(model.state_dict(), then, fresh)
    _same_moments(optimizer.state_dict(), moments)
    _same_random(taken, random, before)
    try:
        counted = whole(done)
    except WrongKind:
        counted = None
    assert counted == step, (
        f"Saved after {step} steps, my_load returns {done if isinstance(done, int | float | str | None) else type(done).__name__}. It should return the number of steps done, {step}."
    )
    assert model.training, (
        "my_load leaves the model in eval mode, so the run goes on without dropout."
    )
    assert torch.equal(_train(model, optimizer, range(step, step + 3)), expected), (
        "All parts are back, and yet the weights differ after three more steps. What else does my_load change?"
    )


def _fresh(seed: int, n_layers: int) -> tuple[GPT, torch.optim.Optimizer]:
    """A model with dropout, and its optimizer."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(20, 8, n_layers, 2, 8, 16, dropout=0.3))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def _train(model: GPT, optimizer: torch.optim.Optimizer, steps: range) -> Tensor:
    """These steps, each with a batch of its own; all weights in one vector."""
    for step in steps:
        batch = torch.Generator().manual_seed(step)
        x, y = torch.randint(20, (2, 3, 8), generator=batch)  # (B, T) each
        model.loss(x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _loaded(load: Load, state: dict[str, Any], *things: Any) -> Any:
    """What `load` returns; an error is told by its first line, a key that is not there by those that are."""
    try:
        return call(load, state, *things)
    except NotImplementedError:
        raise
    except KeyError as error:
        key = error.args[0]
        assert not isinstance(key, str) or key in state, (
            f"my_load asks for {key!r}, and my_save has put in {', '.join(map(repr, state))}."
        )
        raise
    except RuntimeError as error:
        raise AssertionError(told(error).splitlines()[0].rstrip(":")) from None


def _same_weights(now: Any, then: Any, fresh: Any) -> None:
    untouched = all(torch.equal(now[key], fresh[key]) for key in fresh)
    assert not untouched, (
        "After my_load the model has the weights that it had before: load them *into* it, model.load_state_dict(…). (`model = …` changes only what the name stands for.)"
    )
    wrong = [key for key in then if not torch.equal(now[key], then[key])]
    if not wrong:
        return
    for dtype in (torch.float16, torch.bfloat16):
        rounded = {key: then[key].to(dtype).float() for key in then}
        assert not all(torch.equal(now[key], rounded[key]) for key in then), (
            f"The weights come back rounded to {dtype}: a checkpoint keeps them to the last bit."
        )
    apart = max((now[key] - then[key]).abs().max().item() for key in wrong)
    raise AssertionError(
        f"The weights that come back are not those that were saved: {wrong[0]} and {len(wrong) - 1} other tensors differ, by up to {apart:.2g}."
    )


def _same_moments(now: Any, then: Any) -> None:
    assert now["state"], (
        "AdamW's running averages are not back, so the first steps go off in another direction: save optimizer.state_dict(), and load it into the optimizer that my_load is handed."
    )
    wrong = {
        name
        for index, entries in then["state"].items()
        for name, value in entries.items()
        if not same(now["state"].get(index, {}).get(name), value, 0, 0)
    }
    assert not wrong, (
        f"Of AdamW's state, {' and '.join(sorted(wrong))} are not as they were saved. optimizer.state_dict() holds all of it, and optimizer.load_state_dict(…) puts it back."
    )
    rates = now["param_groups"][0]["lr"], then["param_groups"][0]["lr"]
    assert same(now["param_groups"], then["param_groups"]), (
        f"The optimizer's settings are not back: its learning rate is {rates[0]:g} and was {rates[1]:g}. They are part of optimizer.state_dict()."
        if rates[0] != rates[1]
        else "The optimizer's settings are not back. They are part of optimizer.state_dict()."
    )


def _same_random(state: dict[str, Any], random: Tensor, before: Tensor) -> None:
    now = torch.get_rng_state()
    if torch.equal(now, random):
        return
    held = any(
        same(leaf if isinstance(leaf, Tensor) else torch.from_numpy(leaf), random)
        for leaf in _leaves(state)
        if isinstance(leaf, Tensor | np.ndarray) and str(leaf.dtype).endswith("uint8")
    )
    masks = "so dropout draws other masks"
    assert not held or not torch.equal(now, before), (
        f"The dictionary holds where torch's random numbers stand, but my_load does not set it, {masks}: torch.set_rng_state(…)."
    )
    assert not held, (
        f"The dictionary holds where torch's random numbers stand, but after my_load they stand elsewhere, {masks}. Set them last: something moves them on, or sets another state."
    )
    assert torch.equal(now, before), (
        f"my_load moves torch's random numbers, but not to where they stood when my_save was called, {masks}. Save torch.get_rng_state(); a seed says where they began, not where they are."
    )
    raise AssertionError(
        f"The random numbers of torch go on from another place, {masks}. Save torch.get_rng_state(), and set it again with torch.set_rng_state(…)."
    )


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in nested dictionaries and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple | set):
        yield value
        return
    for part in value:
        yield from _leaves(part)


def _is_object(leaf: Any) -> bool:
    return isinstance(leaf, nn.Module | torch.optim.Optimizer)
