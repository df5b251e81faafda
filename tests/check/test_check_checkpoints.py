"""The check on checkpoints is itself checked: each planted bug is caught with its own message."""

import copy
import io

import pytest
import torch

from course import check


def save_all(model, optimizer, step):
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(state | {"random": torch.get_rng_state(), "step": step})


def load_all(state, model, optimizer, *, parts=("model", "optimizer", "random")):
    if "model" in parts:
        model.load_state_dict(state["model"])
    if "optimizer" in parts:
        optimizer.load_state_dict(state["optimizer"])
    if "random" in parts:
        torch.set_rng_state(state["random"])
    return state["step"]


def load_without(part):
    parts = [kept for kept in ("model", "optimizer", "random") if kept != part]
    return lambda *arguments: load_all(*arguments, parts=parts)


def load_reseeded(state, model, optimizer):
    step = load_all(state, model, optimizer)
    torch.manual_seed(0)
    return step


RESUME_BUGS = {
    "copy of their state_dict()": (
        lambda model, optimizer, step: {
            "model": copy.deepcopy(model),
            "optimizer": copy.deepcopy(optimizer),
        },
        load_all,
    ),
    "should return a dictionary": (lambda model, optimizer, step: None, load_all),
    "saving changes the run": (lambda *a: (save_all(*a), torch.rand(1))[0], load_all),
    "live tensors": (
        lambda model, optimizer, step: {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "step": step,
        },
        load_all,
    ),
    "leaves the model in eval mode": (
        lambda model, *rest: (model.eval(), save_all(model, *rest))[1],
        load_all,
    ),
    "The dictionary holds ['BytesIO']": (
        lambda *a: save_all(*a) | {"file": io.BytesIO(b"all")},
        load_all,
    ),
    "weights are not back": (save_all, load_without("model")),
    "running averages are not back": (save_all, load_without("optimizer")),
    "random numbers go on from another place": (save_all, load_without("random")),
    "a seed says where they began": (save_all, load_reseeded),
    "number of steps done": (save_all, lambda *a: load_all(*a) + 1),
    "in training mode": (
        save_all,
        lambda state, model, optimizer: (
            model.eval(),
            load_all(state, model, optimizer),
        )[1],
    ),
}


@pytest.mark.parametrize(("message", "pair"), RESUME_BUGS.items())
def test_planted_bug_of_a_resume_is_named(message, pair):
    verdict = check.resume(*pair)
    assert not verdict.passed
    assert message in verdict.message


def test_a_resume_that_is_right_passes_and_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    assert check.resume(save_all, load_all).passed
    assert torch.equal(torch.get_rng_state(), before)


def test_random_state_as_a_numpy_array_is_right_too():
    def save(*arguments):
        return save_all(*arguments) | {"random": torch.get_rng_state().numpy().copy()}

    def load(state, *rest):
        return load_all(state | {"random": torch.from_numpy(state["random"])}, *rest)

    verdict = check.resume(save, load)
    assert verdict.passed, verdict.message


def test_the_stub_is_told_apart():
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in check.resume(stub, stub).message
