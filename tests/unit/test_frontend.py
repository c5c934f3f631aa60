"""torch.export front end: the imported float layers compute what the module computes, and refusals name names."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.frontend.torch_export import import_module
from tinytrain_lite.train.models import MobileNet

torch.set_num_threads(1)


def randomize_norms(model: nn.Module) -> nn.Module:
    """Statistics as after training: folding must use every one of them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 2),
                (module.bias, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.3, 3),
            ):
                tensor.data.uniform_(low, high)
    return model.eval()


def assert_same_function(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Imported layers against the module itself, on random images."""
    height, width, channels = shape
    x = torch.randn(2, channels, height, width)
    imported = import_module(model, shape)
    with torch.no_grad():
        wanted = model(x)
    got = imported.run(x.permute(0, 2, 3, 1).contiguous().numpy())[imported.layers[-1].name]
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)


def head(channels: int, classes: int = 3) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def test_demo_network_keeps_its_function():
    torch.manual_seed(0)
    assert_same_function(randomize_norms(MobileNet()), (32, 32, 1))


def test_layers_are_named_by_module_path_and_wired():
    layers = {layer.name: layer for layer in import_module(MobileNet(), (32, 32, 1)).layers}
    assert list(layers)[:6] == [
        "stem", "blocks.0.depthwise", "blocks.0.project", "blocks.0.add", "blocks.1.expand", "blocks.1.depthwise",
    ]  # fmt: skip
    assert layers["blocks.5.add"].inputs == ("blocks.4.add", "blocks.5.project")
    assert layers["blocks.4.depthwise"].weight.shape == (144, 5, 5)
    assert layers["blocks.4.depthwise"].pad == (2, 2, 2, 2)
    assert layers["blocks.1.expand"].clamp == (0.0, 6.0)
    assert layers["blocks.1.project"].clamp == (-math.inf, math.inf)
    assert (layers["head"].kind, layers["head"].weight.shape) == ("linear", (10, 64))


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.sampled_from([1, 2, 3]),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(7, 11), st.integers(7, 11)),
    depthwise=st.booleans(),
    bias=st.booleans(),
    norm=st.booleans(),
    activation=st.sampled_from([nn.Identity(), nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-0.5, 2)]),
    seed=st.integers(0, 99),
)
def test_any_convolution_keeps_its_function(kernel, stride, padding, size, depthwise, bias, norm, activation, seed):
    torch.manual_seed(seed)
    channels = 4
    convolution = nn.Conv2d(
        channels, 4 if depthwise else 5, kernel, stride=stride,
        padding=tuple(min(p, kernel // 2) for p in padding), groups=channels if depthwise else 1, bias=bias,
    )  # fmt: skip
    outputs = convolution.out_channels
    norms = [nn.BatchNorm2d(outputs)] if norm else []
    model = nn.Sequential(convolution, *norms, activation, nn.Dropout(), *head(outputs))
    assert_same_function(randomize_norms(model), (*size, channels))


class Functional(nn.Module):
    """The same network spelled in the other ways that PyTorch offers."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 1)
        self.middle = nn.Linear(8, 6)
        self.classifier = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = torch.clamp(self.a(x), min=-1)
        x = F.relu(x + F.hardtanh(self.b(x)))
        x = F.avg_pool2d(x, x.shape[-1]).view(-1, 8)
        x = F.relu6(self.middle(x)).reshape(-1, 6, 1, 1)
        return self.classifier(x).flatten(1)


def test_other_spellings_keep_their_function():
    torch.manual_seed(0)
    model = Functional()
    assert_same_function(model, (6, 6, 3))
    layers = {layer.name: layer for layer in import_module(model, (6, 6, 3)).layers}
    assert layers["add"].clamp == (0.0, math.inf)
    assert layers["middle"].kind == "conv2d" and layers["middle"].weight.shape == (6, 1, 1, 8)
    assert layers["classifier"].kind == "linear"


def test_training_mode_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), *head(2)).train()
    import_module(model, (8, 8, 1))
    assert model.training and model[1].training


class Wrap(nn.Module):
    """A stem, a function of its output, a head: the function is what is under test."""

    def __init__(self, function, **modules):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.inner = nn.ModuleDict(modules)
        self.pool, self.flatten, self.head = head(4)
        self.function = function

    def forward(self, x):
        return self.head(self.flatten(self.pool(self.function(self.inner, self.stem(x)))))


class Residual(nn.Module):
    def forward(self, x):
        return F.relu(x) + x


REFUSALS = {
    "unknown op": (Wrap(lambda m, x: m["swish"](x), swish=nn.SiLU()), r"aten\.silu.*'inner\.swish'"),
    "max pooling": (Wrap(lambda m, x: m["max"](x), max=nn.MaxPool2d(2)), r"aten\.max_pool2d.*'inner\.max'"),
    "groups": (
        Wrap(lambda m, x: m["two"](x), two=nn.Conv2d(4, 4, 1, groups=2)), r"aten\.conv2d.*'inner\.two'.*2 groups",
    ),
    "depth multiplier": (
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 1, groups=4), *head(8)), r"aten\.conv2d.*'1' .*4 groups",
    ),
    "dilation": (
        Wrap(lambda m, x: m["holes"](x), holes=nn.Conv2d(4, 4, 3, dilation=2)), r"'inner\.holes'.*dilation",
    ),
    "unequal strides": (
        Wrap(lambda m, x: m["skewed"](x), skewed=nn.Conv2d(4, 4, 3, stride=(1, 2))), r"'inner\.skewed'.*stride",
    ),
    "norm without convolution": (
        Wrap(lambda m, x: m["norm"](x + x), norm=nn.BatchNorm2d(4)), r"aten\.batch_norm.*'inner\.norm'.*after add",
    ),
    "norm of the batch": (
        Wrap(lambda m, x: m["norm"](x), norm=nn.BatchNorm2d(4, track_running_stats=False)),
        r"'inner\.norm'.*running statistics",
    ),
    "shared weights": (
        Wrap(lambda m, x: m["twice"](m["twice"](x)), twice=nn.Conv2d(4, 4, 1)), r"'inner\.twice'.*shares its weights",
    ),
    "raw output read twice": (Wrap(lambda m, x: m["skip"](x), skip=Residual()), r"'inner\.skip'.*'stem' is also read"),
    "constant added": (Wrap(lambda m, x: x + 1), r"aten\.add.*adds a constant"),
    "broadcast add": (Wrap(lambda m, x: x + x.mean((2, 3), keepdim=True)), r"aten\.add.*shapes must agree"),
    "partial pooling": (Wrap(lambda m, x: m["p"](x), p=nn.AdaptiveAvgPool2d(2)), r"adaptive_avg_pool2d.*'inner\.p'"),
    "activation after pooling": (
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
        r"aten\.relu.* in module '2' after avg_pool",
    ),
    "flatten before pooling": (
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 3)), r"aten\.flatten.*'1'.*pool to 1x1",
    ),
    "no linear layer at the end": (nn.Sequential(nn.Conv2d(2, 4, 3)), "must return one tensor"),
    "activation at the end": (nn.Sequential(nn.Conv2d(2, 4, 1), *head(4), nn.ReLU()), "without activation"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_op_and_module(case):
    model, message = REFUSALS[case]
    with pytest.raises(UnsupportedError, match=message):
        import_module(model, (8, 8, 2))


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_is_refused_in_one_line():
    with pytest.raises(UnsupportedError, match="torch.export cannot trace 'branchy'"):
        import_module(nn.Sequential(Branch(), *head(2)), (8, 8, 2), "branchy")
