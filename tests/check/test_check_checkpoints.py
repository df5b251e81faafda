"""The check on checkpoints: what `attempts/checkpoints.txt` does not prove."""

import copy
import io

import pytest
import torch

from course import check


def save_all(model, optimizer, step):
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(state | {"random": torch.get_rng_state(), "step": step})


def load_all(state, model, optimizer):
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return state["step"]


def spoils_the_weights(model, *rest):
    state = save_all(model, *rest)
    model.half().float()
    return state


def spoils_the_averages(model, optimizer, step):
    state = save_all(model, optimizer, step)
    optimizer.state.clear()
    return state


def half_asleep(state, model, optimizer):
    model.blocks[0].eval()
    return load_all(state, model, optimizer)


def at_another_rate(state, model, optimizer):
    step = load_all(state, model, optimizer)
    optimizer.param_groups[0]["lr"] = 1e-2
    return step


def nearly(state, model, optimizer):
    step = load_all(state, model, optimizer)
    with torch.no_grad():
        model.norm.bias += 1e-3
    return step


def into_another(state, model, optimizer):
    return load_all(state, copy.deepcopy(model), optimizer)


@pytest.mark.parametrize(
    "save, load, words",
    [
        (spoils_the_weights, load_all, "changes the model that it saves"),
        (spoils_the_averages, load_all, "changes the optimizer that it saves"),
        (save_all, half_asleep, "What else does my_load change?"),
        (save_all, at_another_rate, "learning rate is 0.01 and was 0.003"),
        (save_all, nearly, "norm.bias and 0 other tensors differ, by up to 0.001"),
        (save_all, into_another, "the weights that it had before"),
        (save_all, lambda s, *a: load_all({**s}, *a) and s.pop("step"), "takes things"),
        (save_all, lambda *a: load_all(*a) and "3", "my_load returns 3"),
        (lambda *a: save_all(*a) | {"file": io.BytesIO()}, load_all, "['BytesIO']"),
    ],
)
def test_what_was_done_is_told(save, load, words):
    verdict = check.resume(save, load)
    assert not verdict.passed and words in verdict.message, verdict


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
