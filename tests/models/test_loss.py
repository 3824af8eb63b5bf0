"""Losses against equation 4 written out, and which loss a model is trained with."""

import math

import pytest
import torch
from torch import nn

from affbench.models.loss import loss_and_scores, margin_loss, reconstruction_error


def test_margin_loss_is_equation_4():
    lengths = [[0.95, 0.05, 0.3], [0.2, 0.1, 0.9]]
    labels = [0, 1]
    expected = 0.0
    for row, label in zip(lengths, labels, strict=True):
        for k, length in enumerate(row):
            expected += max(0, 0.9 - length) ** 2 if k == label else 0.5 * max(0, length - 0.1) ** 2
    loss = margin_loss(torch.tensor(lengths), torch.tensor(labels))
    assert loss.item() == pytest.approx(expected / 2, rel=1e-6)


def test_margins_and_weight_can_be_chosen():
    loss = margin_loss(torch.tensor([[0.5, 0.5]]), torch.tensor([1]), present=0.8, absent=0.2, absent_weight=2)
    assert loss.item() == pytest.approx(0.3**2 + 2 * 0.3**2)


def test_a_perfect_answer_costs_nothing_and_has_no_gradient():
    lengths = torch.tensor([[0.95, 0.05]], requires_grad=True)
    loss = margin_loss(lengths, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert not lengths.grad.any()


def test_reconstruction_error_is_summed_over_pixels_and_averaged_over_images():
    images = torch.zeros(2, 1, 2, 2)
    drawn = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]]).view(2, 1, 2, 2)
    assert reconstruction_error(drawn, images).item() == pytest.approx(2.5)
    assert reconstruction_error(drawn.bfloat16(), images).dtype == torch.float32


class _Plain(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3]


class _OwnLoss(_Plain):
    def loss(self, images, labels):
        return images.sum() + labels.sum()


class _OwnBoth(_OwnLoss):
    def loss_and_scores(self, images, labels):
        return self.loss(images, labels) * 2, self(images)


def test_a_model_without_a_loss_gets_cross_entropy_in_float32():
    images, labels = torch.tensor([[0.0, 1, 2]]), torch.tensor([2])
    expected = -math.log(math.exp(2) / (1 + math.e + math.exp(2)))
    loss, scores = loss_and_scores(_Plain(), images, labels)
    assert loss.item() == pytest.approx(expected)
    assert scores.shape == (1, 3)
    assert loss_and_scores(_Plain(), images.bfloat16(), labels)[0].dtype == torch.float32


def test_a_model_is_trained_with_the_loss_it_brings():
    images, labels = torch.ones(1, 3), torch.tensor([1])
    assert loss_and_scores(_OwnLoss(), images, labels) == (torch.tensor(4.0), None)
    loss, scores = loss_and_scores(_OwnBoth(), images, labels)
    assert loss.item() == 8
    assert scores.shape == (1, 3)
