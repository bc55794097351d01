"""How reference networks are trained on each workload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """How a reference network is trained on a workload, by `fit`'s SGD with one cycle.

    Attributes:
        epochs: passes over the training split.
        lr: peak of the learning rate.
        batch: images a step.
        weight_decay: of weights; biases and batch norm have none.
    """

    epochs: int
    lr: float
    batch: int = 64
    weight_decay: float = 5e-4


Training = tuple[tuple[str, TrainSettings], ...]

DIGITS: Training = (
    ("lenet300", TrainSettings(epochs=20, lr=0.1)),
    ("lenet5", TrainSettings(epochs=12, lr=0.02, batch=32)),
    ("resnet20", TrainSettings(epochs=8, lr=0.1)),
    ("mobilenet-small", TrainSettings(epochs=15, lr=0.2)),
    ("plain20", TrainSettings(epochs=8, lr=0.1)),
    ("resnet56", TrainSettings(epochs=8, lr=0.1)),
    ("unet-classifier", TrainSettings(epochs=8, lr=0.1)),
)
MNIST: Training = (
    ("lenet300", TrainSettings(epochs=15, lr=0.1, batch=128)),
    ("lenet5", TrainSettings(epochs=15, lr=0.03, batch=128)),
    ("resnet20", TrainSettings(epochs=15, lr=0.1, batch=128)),
    ("mobilenet-small", TrainSettings(epochs=15, lr=0.1, batch=128)),
    ("plain20", TrainSettings(epochs=15, lr=0.1, batch=128)),
    ("resnet56", TrainSettings(epochs=15, lr=0.1, batch=128)),
    ("unet-classifier", TrainSettings(epochs=15, lr=0.1, batch=128)),
)
# No one has tuned these here: the data are the user's.
_NORMED = TrainSettings(epochs=30, lr=0.1, batch=128)
_PLAIN = TrainSettings(epochs=30, lr=0.01)
CIFAR: Training = (
    ("resnet20", _NORMED),
    ("resnet56", _NORMED),
    ("plain20", _NORMED),
    ("vgg16-cifar", TrainSettings(epochs=30, lr=0.05, batch=128)),
    ("mobilenet-small", _NORMED),
    ("mobilenet-v1", _NORMED),
    ("mobilenet-v2", _NORMED),
    ("resnet18", _NORMED),
    ("unet-classifier", _NORMED),
    ("lenet5", _PLAIN),
)
_ANY_SIZE: Training = (
    ("mobilenet-small", TrainSettings(epochs=30, lr=0.1)),
    ("mobilenet-v1", TrainSettings(epochs=30, lr=0.1)),
    ("mobilenet-v2", TrainSettings(epochs=30, lr=0.1)),
    ("efficientnet-lite0", TrainSettings(epochs=30, lr=0.1)),
    ("resnet20", TrainSettings(epochs=30, lr=0.1)),
    ("resnet56", TrainSettings(epochs=30, lr=0.1)),
    ("plain20", TrainSettings(epochs=30, lr=0.1)),
    ("resnet18", TrainSettings(epochs=30, lr=0.1)),
    ("resnet50", TrainSettings(epochs=30, lr=0.1)),
    ("vgg16-cifar", TrainSettings(epochs=30, lr=0.05)),
    ("unet-classifier", TrainSettings(epochs=30, lr=0.1)),
    ("lenet5", _PLAIN),
)
IMAGES_32 = _ANY_SIZE
IMAGES: Training = (
    *_ANY_SIZE,
    ("googlenet", _PLAIN),
    ("alexnet", _PLAIN),
    ("alexnet-grouped", _PLAIN),
    ("vgg16", _PLAIN),
)
