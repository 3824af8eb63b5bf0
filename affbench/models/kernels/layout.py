"""How a model is laid out for the device it runs on, and the mode it is trained in; never changes what it computes."""

import torch
from torch import nn


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, in place, in the memory layout that is fastest there."""
    model.to(device)
    if device.type == "cuda":  # channels-last is the layout of its tensor cores; oneDNN picks its own on a CPU
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
    return model


def in_training(model: nn.Module) -> nn.Module:
    """The model in training mode, but for parts that its factory froze in evaluation mode."""
    frozen = [module for module in model.modules() if not module.training] if model.training else []
    model.train()
    for module in frozen:
        module.training = False
    return model
