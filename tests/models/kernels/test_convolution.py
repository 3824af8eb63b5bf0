"""Winograd convolution against torch's in float64: values, gradients, and when it is used."""

import pytest
import torch
from torch import nn

from affbench.models import build_model
from affbench.models.kernels import convolution
from affbench.models.kernels.convolution import Conv2d

# Kernel, stride, padding, height and width: the models' own, and sizes that leave tiles or pixels over.
CASES = {
    "capsnet on 40×40": (9, 2, 0, 32, 32),
    "capsnet on 28×28": (9, 2, 0, 20, 20),
    "one output": (9, 2, 0, 9, 10),
    "pixels that no filter sees": (9, 2, 0, 34, 31),
    "the baseline": (5, 1, 0, 18, 18),
    "same size": (5, 1, "same", 11, 14),
    "no padding by name": (5, 1, "valid", 9, 12),
    "three taps": (3, 1, 1, 13, 9),
    "a single tile": (3, 1, 0, 3, 3),
    "four taps": (4, 1, 0, 20, 7),
    "even kernel of stride 2": (10, 2, 1, 30, 31),
    "stride 3": (9, 3, 2, 30, 33),
    "kernel and stride that do not divide": (7, 2, 3, 15, 15),
    "much padding": (9, 2, 8, 10, 11),
}


@pytest.fixture
def always(monkeypatch):
    """Use it for every size, also where it does not pay."""
    monkeypatch.setattr(convolution.Plan, "pays", lambda *_: True)


def winograd(result):
    return type(result.grad_fn).__name__ == "_WinogradBackward"


def apart(found, expected):
    """Norm of the difference, relative."""
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def layer(channels, filters, kernel, **options):
    torch.manual_seed(0)
    return Conv2d(channels, filters, kernel, **options)


def exact(module):
    """The same convolution by torch in float64."""
    copy = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        bias=module.bias is not None,
    ).double()
    copy.load_state_dict(module.state_dict())
    return copy


@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_torch_in_float64(kernel, stride, padding, height, width, always):
    module = layer(6, 7, kernel, stride=stride, padding=padding)
    reference = exact(module)
    images = torch.rand(3, 6, height, width, requires_grad=True)
    doubled = images.detach().double().requires_grad_()
    result, expected = module(images), reference(doubled)
    assert winograd(result)
    assert result.shape == expected.shape
    grad = torch.randn_like(result)
    result.backward(grad)
    expected.backward(grad.double())
    assert apart(result, expected) < 1e-5
    assert apart(images.grad, doubled.grad) < 1e-5
    assert apart(module.weight.grad, reference.weight.grad) < 1e-5
    assert apart(module.bias.grad, reference.bias.grad) < 1e-5


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_it_is_as_exact_for_small_and_large_numbers(scale, always):
    module = layer(16, 8, 9, stride=2, bias=False)
    reference = exact(module)
    images = torch.rand(2, 16, 20, 20) * scale
    result, expected = module(images), reference(images.double())
    assert apart(result, expected) < 1e-5
    (result.sum() / scale).backward()
    (expected.sum() / scale).backward()
    assert apart(module.weight.grad, reference.weight.grad) < 1e-5


def test_groups_of_images_and_blocks_of_pixels_change_nothing(always, monkeypatch):
    module = layer(8, 6, 5)
    images = torch.rand(7, 8, 12, 12, requires_grad=True)

    def both():
        module.zero_grad()
        images.grad = None
        result = module(images)
        result.square().sum().backward()
        return result.detach(), images.grad.clone(), module.weight.grad.clone()

    whole = both()
    monkeypatch.setattr(convolution, "_GROUP", 3 * 4 * 64 * 8)
    monkeypatch.setattr(convolution, "_BLOCK", 2 * 4 * 64 * 8)
    for found, expected in zip(both(), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_gradients_that_nobody_wants_are_left_out(always):
    module = layer(4, 4, 5)
    images = torch.rand(2, 4, 9, 9)
    module(images).sum().backward()
    weight, bias = module.weight.grad.clone(), module.bias.grad.clone()
    module.weight.requires_grad_(False)
    module.zero_grad()
    images.requires_grad_()
    module(images).sum().backward()
    torch.testing.assert_close(module.bias.grad, bias)
    assert module.weight.grad is None
    assert images.grad.abs().sum() > 0
    module.weight.requires_grad_(True)
    module(images.detach()).sum().backward()
    torch.testing.assert_close(module.weight.grad, weight)


def test_any_layout_in_memory_gives_the_same(always):
    module = layer(4, 4, 5)
    images = torch.rand(2, 4, 12, 12)
    strided = torch.rand(4, 4, 24, 12)[::2, :, ::2].copy_(images)
    for same in (images.to(memory_format=torch.channels_last), strided):
        torch.testing.assert_close(module(same), module(images))


@pytest.mark.parametrize("shape", [(3, 1, 12, 10), (1, 1, 5, 5)])
def test_one_channel_has_the_values_and_gradients_of_torch(shape):
    module = layer(1, 6, 5)
    reference = exact(module)
    images = torch.rand(shape, requires_grad=True)
    doubled = images.detach().double().requires_grad_()
    module(images).square().sum().backward()
    reference(doubled).square().sum().backward()
    assert apart(module(images), reference(doubled)) < 1e-5
    assert apart(images.grad, doubled.grad) < 1e-5
    assert apart(module.weight.grad, reference.weight.grad) < 1e-5
    flipped = torch.rand(3, 1, 10, 12).transpose(2, 3).expand(3, 1, 12, 10)
    assert apart(module(flipped), exact(module)(flipped.double())) < 1e-5


def test_under_autocast_it_stays_float32(always, monkeypatch):
    monkeypatch.setattr(convolution, "cpu_bfloat16_rate", lambda: 2.0)
    module = layer(8, 8, 5)
    images = torch.rand(2, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(images)
        half = module(images.bfloat16())
        half.sum().backward()
    assert result.dtype == half.dtype == torch.float32
    assert apart(result, exact(module)(images.double())) < 1e-5
    assert apart(module.weight.grad, exact_weight_gradient(module, images)) < 1e-2


def exact_weight_gradient(module, images):
    reference = exact(module)
    reference(images.double()).sum().backward()
    return reference.weight.grad


def test_the_large_convolutions_of_the_models_use_it():
    images = torch.rand(32, 1, 40, 40)
    capsnet, cnn = build_model("capsnet", canvas=40), build_model("cnn", canvas=40)
    first, relu, second = capsnet.primary.network
    inner = relu(first(images))
    assert winograd(second(inner))
    assert inner.is_contiguous(memory_format=torch.channels_last)
    first, relu, pool, second, *_ = cnn.features
    assert winograd(second(pool(relu(first(images)))))


@pytest.mark.parametrize(
    ("channels", "filters", "images"), [(256, 256, 1), (16, 16, 32)], ids=["one image", "few channels"]
)
def test_where_it_does_not_pay_it_is_torchs(channels, filters, images):
    module = layer(channels, filters, 9, stride=2)
    result = module(torch.rand(images, channels, 20, 20))
    assert not winograd(result)


@pytest.mark.parametrize(("rate", "used"), [(0.5, True), (2.0, True), (16.0, False)])
def test_on_matrix_units_bfloat16_is_torchs(rate, used, monkeypatch):
    monkeypatch.setattr(convolution, "cpu_bfloat16_rate", lambda: rate)
    module = layer(512, 256, 5)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(torch.rand(32, 512, 18, 18))
    assert winograd(result) is used


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2},
        {"dilation": 2},
        {"padding": 2, "padding_mode": "reflect"},
        {"stride": (1, 2)},
        {"padding": (1, 2)},
        {"kernel_size": (5, 3)},
        {"kernel_size": 1},
        {"kernel_size": 11},
    ],
    ids=str,
)
def test_what_it_does_not_do_torch_does(options, always):
    options = {"kernel_size": 5} | options
    module = Conv2d(4, 4, **options)
    plain = nn.Conv2d(4, 4, **options)
    plain.load_state_dict(module.state_dict())
    images = torch.rand(2, 4, 16, 16)
    result = module(images)
    assert not winograd(result)
    torch.testing.assert_close(result, plain(images))


def test_float64_and_single_images_are_torchs(always):
    module = layer(4, 4, 5)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = module.double()(torch.rand(2, 4, 9, 9, dtype=torch.float64))
        assert result.dtype == torch.float64
    assert module.float()(torch.rand(4, 9, 9)).shape == (4, 5, 5)
    assert module(torch.rand(0, 4, 9, 9)).shape == (0, 4, 5, 5)


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (2, 4, 4, 9)], ids=["channels", "too small"])
def test_images_that_do_not_fit_are_refused_as_by_torch(shape, always):
    with pytest.raises(RuntimeError):
        layer(4, 4, 5)(torch.rand(shape))


def test_a_model_that_was_evaluated_first_can_be_trained(always):
    convolution._matrices.cache_clear()
    module = layer(4, 4, 5)
    images = torch.rand(2, 4, 9, 9)
    with torch.inference_mode():
        module(images)
    module(images.requires_grad_()).square().sum().backward()
    assert images.grad.abs().sum() > 0
