"""slm.model.gpt against PyTorch's cross entropy and its own promises."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

import slm.model.gpt
from course.figures.gpt import peak_megabytes
from slm.model.config import GPTConfig
from slm.model.gpt import GPT, _ChunkedCrossEntropy, sample_tokens


class Recorder(TorchDispatchMode):
    """Notes every matrix product that is made inside."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default:
            self.found.append((tuple(result.shape), result.dtype))
        return result


SMALL = {
    "vocab_size": 101,
    "context_length": 24,
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 32,
    "d_ff": 96,
}


def small(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((12, 12, 768, 3072), 124_439_808),
        ((24, 16, 1024, 4096), 354_823_168),
        ((36, 20, 1280, 5120), 774_030_080),
    ],
)
def test_parameter_counts_of_the_published_models(size, count):
    n_layers, n_heads, d_model, d_ff = size
    with torch.device("meta"):
        model = GPT(
            GPTConfig(50257, 1024, n_layers, n_heads, d_model, d_ff, dropout=0.1)
        )
    assert model.count_parameters() == count


def test_initial_weights_have_gpt2s_spread():
    model = small(n_layers=8, d_model=64, d_ff=256)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.blocks[3].attention.qkv.weight.std().item() == pytest.approx(
        0.02, rel=0.1
    )
    for part in (model.blocks[3].attention.out, model.blocks[5].feed_forward.down):
        assert part.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.1)
        assert not part.bias.any()


def test_a_model_that_knows_nothing_has_the_loss_of_a_uniform_guess():
    model, tokens = small().eval(), torch.randint(101, (8, 24))
    assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(
        math.log(101), abs=0.05
    )


def test_a_later_token_changes_no_earlier_logit():
    model, tokens = small().eval(), torch.randint(101, (2, 24))
    changed = tokens.clone()
    changed[:, 10:] = (tokens[:, 10:] + 1) % 101
    assert torch.equal(model(tokens)[:, :10], model(changed)[:, :10])


BLOCKS = {"one block": 2**25, "several blocks": 3 * 4 * 101 * 4}


@pytest.fixture(params=["CPU", "GPU"])
def width(request, monkeypatch):
    """The columns of the loss's products, of the CPU's rule and of the GPU's."""
    if request.param == "GPU":
        rule = slm.model.config.logit_columns
        monkeypatch.setattr(
            slm.model.gpt, "logit_columns", lambda V, _: rule(V, "cuda")
        )
    return slm.model.gpt.logit_columns(101, "cpu")


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("ignored", [False, True])
def test_loss_and_gradients_equal_the_plain_way(monkeypatch, width, block, ignored):
    monkeypatch.setattr(
        slm.model.gpt,
        "logit_rows",
        lambda N, V, size, device: (min(N, block // (V * size)), 5),
    )
    model = small(d_model=8, n_heads=2)
    x, y = torch.randint(
        101, (2, 3, 17)
    )  # 51 rows: several blocks are of 12 rows, the last of 3
    if ignored:
        y[0], y[2, 5:] = -100, -100
    plain = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    ours = model.loss(x, y)
    assert ours.item() == pytest.approx(plain.item(), abs=1e-6)
    expected = torch.autograd.grad(plain, model.parameters())
    for mine, reference in zip(
        torch.autograd.grad(ours, model.parameters()), expected, strict=True
    ):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-4)


def test_what_stands_behind_the_last_target_is_not_computed(monkeypatch):
    model, hidden = small(), []
    x, y = torch.randint(101, (2, 3, 17))
    y[:, 9:], y[1:, 4:], y[:, 2] = -100, -100, -100  # only row 0 goes on to place 8
    plain = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    expected = torch.autograd.grad(plain, model.parameters())
    monkeypatch.setattr(
        model, "hidden", lambda x: hidden.append(x) or GPT.hidden(model, x)
    )
    ours = model.loss(x, y)
    assert [tokens.shape for tokens in hidden] == [(3, 9)]
    assert ours.item() == pytest.approx(plain.item(), abs=1e-6)
    for mine, reference in zip(
        torch.autograd.grad(ours, model.parameters()), expected, strict=True
    ):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-4)


def test_what_is_not_computed_is_checked_all_the_same():
    model, x = small(), torch.randint(101, (2, 25))
    y = torch.full_like(x, -100)
    y[:, :3] = 7
    with pytest.raises(ValueError, match="25 tokens do not fit"):
        model.loss(x, y)
    x[1, 20] = 101
    with pytest.raises(ValueError, match="token id 101 is outside"):
        model.loss(x[:, :24], y[:, :24])


def test_a_vocabulary_wider_than_one_slice_of_the_table():
    model, (x, y) = (
        small(vocab_size=2**13 + 3, d_model=8, n_heads=2),
        torch.randint(2**13 + 3, (2, 2, 9)),
    )
    plain = torch.autograd.grad(
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()), model.parameters()
    )
    for mine, reference in zip(
        torch.autograd.grad(model.loss(x, y), model.parameters()), plain, strict=True
    ):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-4)


def test_the_loss_needs_a_fraction_of_the_plain_memory():
    model = small(vocab_size=50257, context_length=256, d_model=16)
    x, y = torch.randint(
        50257, (2, 4, 256)
    )  # 1,024 rows of 50,257 logits: 206 MB in 32 bits
    plain = peak_megabytes(lambda: F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
    ours = peak_megabytes(lambda: model.loss(x, y))
    assert plain > 2 * 206 and ours < 110, (plain, ours)


def test_enormous_logits_do_not_overflow():
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    with torch.no_grad():
        model.token_embedding.weight.mul_(1e4)
    plain = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    assert plain > 100 and model.loss(x, y).item() == pytest.approx(
        plain.item(), rel=1e-5
    )


def test_a_row_that_does_not_count_may_hold_nan():
    hidden = torch.randn(4, 8)
    weight, targets = torch.randn(11, 8), torch.tensor([3, -100, 5, 0])
    expected = F.cross_entropy(hidden @ weight.T, targets)
    hidden[1] = torch.nan
    hidden.requires_grad_(), weight.requires_grad_()
    loss = _ChunkedCrossEntropy.apply(hidden, weight, targets, True)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert (
        weight.grad.isfinite().all()
        and hidden.grad.isfinite().all()
        and not hidden.grad[1].any()
    )


def test_gradients_can_be_taken_one_after_the_other():
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    loss = model.loss(x, y)
    once = torch.autograd.grad(loss, model.parameters(), retain_graph=True)
    again = torch.autograd.grad(loss, model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_loss_scales_with_what_comes_after_it():
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    single = torch.autograd.grad(model.loss(x, y), model.parameters())
    triple = torch.autograd.grad(3 * model.loss(x, y), model.parameters())
    for one, three in zip(single, triple, strict=True):
        torch.testing.assert_close(3 * one, three)


def test_loss_under_autocast_is_close_and_gradients_are_float32():
    model, (x, y) = small(), torch.randint(101, (2, 2, 24))
    exact = model.loss(x, y).item()
    products = []
    with torch.autocast("cpu", torch.bfloat16), Recorder(products):
        loss = model.loss(x, y)
    loss.backward()
    types = [dtype for shape, dtype in products if 101 in shape]
    assert types == [torch.bfloat16] * 2  # logits, and the gradient of the table
    assert products[-2] == ((48, 32), torch.bfloat16)  # and that of the stream
    assert loss.item() == pytest.approx(exact, rel=0.01)
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters()
    )


def test_loss_without_any_target_is_zero_and_harmless():
    model, x = small(), torch.randint(101, (1, 5))
    loss = model.loss(x, torch.full_like(x, -100))
    loss.backward()
    assert loss.item() == 0 and not any(p.grad.any() for p in model.parameters())


def test_loss_in_evaluation_keeps_no_graph():
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    with torch.no_grad():
        assert not model.loss(x, y).requires_grad


def test_products_of_a_gpu_have_aligned_rows_and_the_gradient_has_none_of_them(width):
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    products = []
    with Recorder(products):
        loss = model.loss(x, y)
    shapes = [shape for shape, _ in products][-3:]
    assert shapes == [(18, width), (18, 32), (101, 32)]
    loss.backward()
    assert model.token_embedding.weight.grad.shape == (101, 32)
    assert model.count_parameters() == slm.model.config.count_parameters(model.config)


def test_loss_compiles_in_one_graph_and_gives_the_same(width):
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, y), model.loss(x, y))
    expected = torch.autograd.grad(model.loss(x, y), model.parameters())
    found = torch.autograd.grad(compiled(x, y), model.parameters())
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference)


def test_a_compiler_cannot_make_the_logits_of_all_blocks_at_once(monkeypatch, width):
    """Each block's logits need both gradients of the block before, as PyTorch cuts the graph for its compiler."""
    monkeypatch.setattr(slm.model.gpt, "logit_rows", lambda N, *_: (-(-N // 3), 5))
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    graphs = []

    def keep(module, inputs):
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    cut = min_cut_rematerialization_partition
    backend = aot_autograd(fw_compiler=keep, partition_fn=cut)
    loss = torch.compile(model.loss, fullgraph=True, backend=backend)(x, y)
    torch.testing.assert_close(loss, model.loss(x, y))
    needs = {}  # all that a node is computed from
    for node in graphs[0].nodes:
        inputs = node.all_input_nodes
        needs[node] = set(inputs).union(*(needs[each] for each in inputs))
    products = [node for node in needs if node.target is torch.ops.aten.mm.default]
    logits = [node for node in products if node.meta["val"].shape == (6, width)]
    assert len(logits) == 3
    for before, after in itertools.pairwise(logits):
        users = [node for node in products if before in needs[node]]
        gradients = [node for node in users if logits[-1] not in {node, *needs[node]}]
        assert len(set(gradients) & needs[after]) >= 2


def test_one_batch_is_learned_by_heart():
    model, tokens = (
        small(),
        torch.randint(101, (1, 25), generator=torch.Generator().manual_seed(2)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m(torch.zeros(1, 25, dtype=torch.long)),
            "25 tokens do not fit into the model's context_length = 24",
        ),
        (
            lambda m: m(torch.zeros(1, 5, dtype=torch.long), start=20),
            "25 tokens do not fit",
        ),
        (
            lambda m: m(torch.tensor([[3, 101]])),
            "token id 101 is outside the vocabulary; ids from 0 to 100",
        ),
        (lambda m: m(torch.tensor([[3, -1]])), "token id -1"),
        (
            lambda m: m.loss(torch.zeros(1, 4).long(), torch.zeros(1, 5).long()),
            r"shape \(1, 5\) and tokens \(1, 4\)",
        ),
        (
            lambda m: m.loss(torch.zeros(1, 2).long(), torch.tensor([[3, -1]])),
            "from 0 to 100 are allowed, and -100",
        ),
        (
            lambda m: m.loss(torch.zeros(1, 2).long(), torch.tensor([[101, 3]])),
            "from 0 to 100 are allowed, and -100",
        ),
        (
            lambda m: GPTConfig(**{**SMALL, "n_heads": 5}),
            "n_heads = 5 does not divide d_model = 32",
        ),
        (lambda m: GPTConfig(**{**SMALL, "n_layers": 0}), "n_layers = 0"),
        (lambda m: GPTConfig(**{**SMALL, "d_ff": 9.5}), "d_ff = 9.5"),
        (lambda m: GPTConfig(**{**SMALL, "dropout": 1.0}), "dropout = 1.0"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(small())
    assert "\n" not in str(caught.value)


def test_the_start_is_gpt2s():
    model = small(n_layers=8, d_model=64, vocab_size=3000, context_length=3000)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 2:
            into_stream = name.endswith(("out.weight", "down.weight"))
            assert parameter.std().item() == pytest.approx(
                0.02 / 4 if into_stream else 0.02, rel=0.05
            ), name


def test_dropout_stands_where_gpt2_has_it(monkeypatch):
    model, dropped, in_attention = small(dropout=0.25), [], []
    plain, fused = F.dropout, F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "dropout",
        lambda x, p=0.5, training=True, inplace=False: (
            dropped.append((tuple(x.shape), p if training else 0.0))
            or plain(x, p, training)
        ),
    )
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *a, **k: in_attention.append(k.get("dropout_p", 0.0)) or fused(*a, **k),
    )
    tokens = torch.randint(101, (2, 10))
    model.train()(tokens)
    assert dropped == [((2, 10, 32), 0.25)] * (1 + 2 * 2), (
        "the embedding, and two outputs a block"
    )
    assert in_attention == [0.25, 0.25], "the weights of each layer"
    dropped.clear(), in_attention.clear()
    model.eval()(tokens)
    assert {p for _, p in dropped} == {0.0} and in_attention == [0.0, 0.0]


def plain_samples(model, prompt, max_tokens, seed, stop_token=None, vocab_size=None):
    """The loop again, without a switch of modes: each step's probabilities, one generator."""
    generator, tokens = torch.Generator().manual_seed(seed), list(prompt)
    for _ in range(max_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[-model.config.context_length :]]))
        p = F.softmax(logits[0, -1, :vocab_size], -1)
        tokens.append(int(torch.multinomial(p, 1, generator=generator)))
        if tokens[-1] == stop_token:
            return tokens[len(prompt) : -1]
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [5, 40])
def test_samples_are_drawn_from_the_predictions(length):
    """Also beyond the 24 tokens that the model can see."""
    model = small(dropout=0.5).eval()
    torch.nn.init.normal_(model.token_embedding.weight, std=0.3)  # it prefers something
    expected = plain_samples(model, [3, 5], length, seed=7)
    model.train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert sample_tokens(model, [3, 5], length, seed=7) == expected
    assert model.training, "the model's mode is kept"
    assert torch.equal(torch.get_rng_state(), state), "it has random numbers of its own"
    assert sample_tokens(model, [3, 5], length, seed=8) != expected


def test_samples_end_at_the_stop_token_and_keep_to_the_vocabulary():
    model = small().eval()
    free = sample_tokens(model, [3], 200, seed=0)
    assert len(free) == 200 and max(free) > 20
    assert max(sample_tokens(model, [3], 200, seed=0, vocab_size=20)) < 20
    stop = free[9]
    assert (
        sample_tokens(model, [3], 200, seed=0, stop_token=stop)
        == free[: free.index(stop)]
    )
    prompt = [3]
    sample_tokens(model, prompt, 2, seed=0)
    assert prompt == [3] and sample_tokens(model, prompt, 0, seed=0) == []


def test_tables_are_all_matrices_outside_the_blocks():
    model = small()
    inside = {id(p) for p in model.blocks.parameters()}
    outside = [p for p in model.parameters() if p.dim() == 2 and id(p) not in inside]
    assert len(outside) == 2
    assert {id(p) for p in model.tables()} == {id(p) for p in outside}


def test_nothing_in_the_model_is_apart_from_its_parameters():
    """`from_pretrained` loads the parameters by name and would leave a buffer as it is."""
    assert small().state_dict().keys() == dict(small().named_parameters()).keys()
