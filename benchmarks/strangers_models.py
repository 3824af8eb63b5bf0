"""Models as strangers write them: each trains, or gets one sentence.

    python benchmarks/strangers_models.py

Every model below is a file of its own, trained for one epoch on 97 digits by ``affbench train --model FILE.py:make``
and, where it can be built, tested by `affbench.evaluate`. Prints a table and counts; ends with status 1 when a model
ends in a traceback, is called a bug of affbench, gets no sentence, or ends otherwise than is written here.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

import affbench
from affbench.base.errors import AffbenchError
from affbench.cli.app import app

SET = "mnist-translated-sample"
TRAINING = ("--train-set", SET, "--limit", "97", "--batch-size", "32", "--epochs", "1", "--precision", "float32")
PRELUDE = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10, inputs=1600):
        super().__init__()
        self.layer = nn.Linear(inputs, classes)
    def forward(self, x):
        return self.layer(x.flatten(1))

def make():
    return Model()

"""
# Each begins with a line "# what is special [option] -> what affbench says of it"; those without an arrow train.
STRANGERS = """
# a plain network
class Model(Net):
    pass

# raw scores and the image -> a tuple
class Model(Net):
    def forward(self, x):
        return (super().forward(x), x)

# a dictionary -> a dict
class Model(Net):
    def forward(self, x):
        return {'logits': super().forward(x)}

# class capsules -> lengths of capsules
class Model(Net):
    def __init__(self):
        super().__init__(160)
    def forward(self, x):
        return super().forward(x).view(-1, 10, 16)

# a tuple in training only, as Inception -> a tuple
class Model(Net):
    def forward(self, x):
        y = super().forward(x)
        return (y, y) if self.training else y

# 9 classes -> (2, 9): a real number for each of 10 classes
def make():
    return Net(9)

# 1,000 classes -> (2, 1000): a real number for each of 10 classes
def make():
    return Net(1000)

# log-probabilities
class Model(Net):
    def forward(self, x):
        return super().forward(x).log_softmax(1)

# complex scores -> of complex64
class Model(Net):
    def forward(self, x):
        return torch.complex(super().forward(x), x[:, 0, 0, :10])

# predicted classes -> not (2,)
class Model(Net):
    def forward(self, x):
        return super().forward(x).argmax(1)

# 3 channels -> to have 3 channels
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.LazyLinear(10))

# made for 28×28 -> cannot take the 40×40 images
def make():
    return Net(inputs=784)

# a fixed batch size -> cannot take the 40×40 images
class Model(Net):
    def forward(self, x):
        return super().forward(x.view(32, 1600))

# float64 parameters -> its parameters are float64: call .float()
def make():
    return Net().double()

# float64 inside, images converted
class Model(Net):
    def forward(self, x):
        return super().forward(x.double())
def make():
    return Model().double()

# complex parameters -> has complex parameters
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1600, 10, dtype=torch.complex64)
    def forward(self, x):
        return self.layer(x.flatten(1).to(torch.complex64)).abs()

# frozen -> no parameter to train (2 are frozen
def make():
    return Net().requires_grad_(False)

# a frozen backbone
def make():
    return nn.Sequential(Net(32).requires_grad_(False), nn.Linear(32, 10))

# no parameters -> no parameter to train (0 are frozen
class Model(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]

# layers in a Python list -> nn.ModuleList
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(1600, 10)]
    def forward(self, x):
        return self.layers[0](x.flatten(1))

# lazy layers
def make():
    return nn.Sequential(nn.LazyConv2d(4, 9), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))

# a layer made in the first forward
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = None
    def forward(self, x):
        x = x.flatten(1)
        if self.layer is None:
            self.layer = nn.Linear(x.shape[1], 10)
        return self.layer(x)

# nothing to learn through -> depends on no parameter that is trained
class Model(Net):
    def forward(self, x):
        return super().forward(x).detach() + 1

# NumPy in forward -> depends on no parameter that is trained
class Model(Net):
    def forward(self, x):
        return torch.from_numpy(super().forward(x).detach().numpy())

# loss(images, labels)
class Model(Net):
    def loss(self, images, labels):
        return F.cross_entropy(self(images), labels)

# loss(output, target) -> Its loss was called as loss(images, labels)
class Model(Net):
    def loss(self, output, target):
        return F.cross_entropy(output, target)

# loss(data, x, target, reconstruction) -> Its loss was called as loss(images, labels)
class Model(Net):
    def loss(self, data, x, target, reconstruction):
        return F.cross_entropy(x, target)

# a module called loss -> Its loss was called as loss(images, labels)
class Model(Net):
    def __init__(self):
        super().__init__()
        self.loss = nn.CrossEntropyLoss()

# a loss for each image -> must return a scalar tensor, the mean over the batch, not (2,)
class Model(Net):
    def loss(self, images, labels):
        return F.cross_entropy(self(images), labels, reduction='none')

# a loss and its parts -> not a tuple of 2
class Model(Net):
    def loss(self, images, labels):
        loss = F.cross_entropy(self(images), labels)
        return (loss, loss)

# get_extra_state -> the model's state holds '_extra_state'
class Model(Net):
    def get_extra_state(self):
        return {'epoch': 3}
    def set_extra_state(self, state):
        pass

# a buffer as large as the batch -> 'last' is made, or changes its shape, in training
class Model(Net):
    def forward(self, x):
        self.register_buffer('last', x.sum((1, 2, 3)) if self.training else torch.zeros(1))
        return super().forward(x)

# batch normalisation after pooling -> is a single image
def make():
    pooled = nn.Sequential(nn.Conv2d(1, 4, 9), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(pooled, nn.BatchNorm1d(4), nn.Linear(4, 10))

# an error in forward -> KeyError: 'routing' (stranger
class Model(Net):
    def forward(self, x):
        raise KeyError('routing')

# sys.exit in forward -> SystemExit: not yet
import sys
class Model(Net):
    def forward(self, x):
        sys.exit('not yet')

# an error in the fourth step -> in epoch 1, batch 4 of 1 images: IndexError: step 4
class Model(Net):
    steps = 0
    def forward(self, x):
        self.steps += self.training
        if self.steps == 4:
            raise IndexError('step 4')
        return super().forward(x)

# sys.exit at the top -> what runs as a script belongs below
import sys
sys.exit(0)

# an option that must be given, read at the top -> what runs as a script belongs below
import argparse
parser = argparse.ArgumentParser()
parser.add_argument('--lr', required=True)
parser.parse_args()

# options with defaults, read at the top
import argparse
parser = argparse.ArgumentParser()
parser.add_argument('--width', type=int, default=10)
arguments = parser.parse_args()
def make():
    return Net(arguments.width)

# a syntax error -> SyntaxError
def make(:

# a package that is not there -> No module named 'no_such_capsules'
import no_such_capsules

# numbers and NumPy in the factory
class Model(Net):
    def __init__(self):
        super().__init__()
        self.scale = torch.linspace(0, 1, 5)[2].item() + float(self.layer.weight.detach().numpy().std())

# weights read by the factory
def make():
    torch.save(Net().state_dict(), 'weights.pt')
    net = Net()
    net.load_state_dict(torch.load('weights.pt', weights_only=True))
    return net

# weights that are not there -> FileNotFoundError
def make():
    return torch.load('nowhere.pt')

# a class as default [width=4]
def make(width=16, act=nn.ReLU, norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(1, width, 9), norm(width), act(), nn.Flatten(), nn.LazyLinear(10))

# a parameter called name [name=mine]
def make(name, width=10):
    return Net(width)

# **kwargs that do not know the canvas [classes=10]
def make(**kwargs):
    return Net(**kwargs)

# prints
print('imported')
class Model(Net):
    def forward(self, x):
        print(x.shape)
        return super().forward(x)

# the same network every time -> returned the same network twice
net = Net()
def make():
    return net

# a network and no factory -> is built already
make = Net()

# no network -> must return a torch.nn.Module, not function
def make():
    return lambda images: images

# compiled to TorchScript
def make():
    return torch.jit.script(Net())

# gradients of the input in forward
class Model(Net):
    def forward(self, x):
        x = x.clone().requires_grad_()
        y = super().forward(x)
        return y + torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].flatten(1)[:, :10]
"""


@dataclass(frozen=True)
class Stranger:
    """A model: what is special about it, an option, what `affbench train` should say of it, and its code."""

    title: str
    option: str
    says: str
    code: str


def strangers() -> list[Stranger]:
    """The models above."""
    line = r"# ([^\n\[>]+?)(?: \[(.+?)\])?(?: -> ([^\n]+))?"
    return [
        Stranger(*(part or "" for part in re.fullmatch(line, head).groups()), code)  # type: ignore[union-attr]
        for head, _, code in (part.partition("\n") for part in STRANGERS.strip().split("\n\n"))
    ]


def trained(stranger: Stranger, file: Path) -> tuple[str, str]:
    """How training the model ended, and what was said."""
    option = ("-o", stranger.option) if stranger.option else ()
    command = ("train", "--model", f"{file}:make", *TRAINING, "--device", "cpu", "--json", *option)
    result = CliRunner().invoke(app, command)
    said = [line.removeprefix("affbench: ") for line in result.stderr.splitlines() if line.startswith("affbench: ")]
    if result.exit_code == 0 and result.stdout.startswith("{") and not said and not stranger.says:
        return "trained", "trained"
    if result.exit_code in (1, 2) and len(said) == 1 and stranger.says and stranger.says in said[0]:
        return ("otherwise" if "This is a bug" in said[0] else "one sentence"), said[0]
    return "otherwise", f"status {result.exit_code}, {result.exception!r}, said {said}"


def tested(stranger: Stranger, file: Path) -> str:
    """What `affbench.evaluate` says of the untrained model."""
    key, _, value = stranger.option.partition("=")
    options = {key: int(value) if value.isdigit() else value} if key else {}
    try:
        model = affbench.build_model(f"{file}:make", **options)
        return f"{affbench.evaluate(model, affbench.load_dataset(SET, limit=100)).accuracy:.0%}"
    except AffbenchError as error:
        return str(error)


def main() -> bool:
    """Train and test every model; whether one ended otherwise than it should."""
    counts = {"trained": 0, "one sentence": 0, "otherwise": 0}
    for number, stranger in enumerate(strangers()):
        file = Path(f"stranger{number}.py")
        file.write_text(PRELUDE + stranger.code + "\n")
        end, text = trained(stranger, file)
        counts[end] += 1
        print(f"{end:14}{stranger.title}\n{'':14}train: {text}\n{'':14}evaluate: {tested(stranger, file)}")
    print(", ".join(f"{count} {end}" for end, count in counts.items()), f"of {sum(counts.values())}")
    return counts["otherwise"] > 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of torch about lazy modules, and of affbench about untrained ones
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"AFFBENCH_DATA_DIR": "data", "AFFBENCH_RESULTS_DIR": "results"}
        sys.exit(main())
