"""What the switches and the attempts do not prove: the references are right, and ready-made answers are seen."""

import pytest
import torch
import torch.nn.functional as F

from course import check
from course.check.gpt import COUNT, FLOPS, LOSS
from slm.model.config import GPTConfig, count_flops_per_token, count_parameters
from slm.model.gpt import GPT


@pytest.mark.parametrize("probe", COUNT.probes)
def test_count_is_that_of_a_built_model(probe):
    assert COUNT.answer(*probe) == GPT(*probe).count_parameters()


@pytest.mark.parametrize("probe", FLOPS.probes)
def test_flops_are_the_chapters_and_one_matrix_more(probe):
    n_layers, d_model, d_ff, vocab_size, context_length = probe
    plain = GPTConfig(vocab_size, context_length, n_layers, 1, d_model, d_ff)
    gate = n_layers * 6 * d_model * d_ff
    assert FLOPS.answer(*probe) == count_flops_per_token(plain) + gate


@pytest.mark.parametrize("probe", LOSS.probes)
def test_loss_is_that_of_pytorch(probe):
    assert torch.allclose(LOSS.answer(*probe), F.cross_entropy(*probe))


def notebooks_own(config):
    """As a notebook defines it: another function object of the same name and code."""
    names = {}
    source = "def count_parameters(config): pass"
    exec(source, names)
    names["count_parameters"].__code__ = count_parameters.__code__
    return names["count_parameters"](config)


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda c: GPT(c).count_parameters(), "you made the model and asked it"),
        (notebooks_own, "the chapter's `count_parameters` counted it"),
        (count_parameters, "the chapter's `count_parameters` counted it"),
    ],
)
def test_a_ready_made_count_is_told(answer, words):
    assert words in check.parameter_count(answer).message


def picked(z, y):
    rows, targets = z[y != -100], y[y != -100]
    return rows.logsumexp(-1) - rows.gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda z, y: F.nll_loss(z.log_softmax(-1), y), "did the work (nll_loss)"),
        (lambda z, y: picked(z.detach(), y).mean(), "no gradient can flow back"),
        (lambda z, y: (picked(z, y) + 0 * z.sum()).mean().detach() + 0 * z.sum(), "its gradient is not"),
        (lambda z, y: picked(z.clamp(-90, 90), y).mean(), "Clamping, or a small number"),
    ],
)  # fmt: skip
def test_a_loss_that_is_right_by_other_means_is_told(answer, words):
    assert words in check.cross_entropy(answer).message


def test_check_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    assert check.cross_entropy(lambda z, y: picked(z, y).mean()).passed
    assert torch.equal(torch.randn(3), expected)
