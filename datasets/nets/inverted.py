"""Networks of inverted residual blocks: MobileNet V2 and EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flatsat.datasets.architectures.layer import Shape, scaled
from flatsat.datasets.architectures.mobile import (
    EFFICIENTNET_LITE0_STAGES,
    MOBILENET_V2_HEAD,
    MOBILENET_V2_STAGES,
    MOBILENET_V2_STEM,
    Stages,
)


def _padded(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    sides: Sequence[int],
    groups: int = 1,
    *,
    same: bool,
) -> tuple[nn.Module, nn.Conv2d]:
    """Return a padding and a convolution; the padding is none where the convolution's own will do.

    With `same` the padding is TensorFlow's: as much as the last window needs, the odd row and
    column at the end.
    """
    padding = kernel // 2
    pads: list[tuple[int, int]] = []
    for side in sides:
        missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads.append((missing // 2, missing - missing // 2))
    own = not same or all(pair == (padding, padding) for pair in pads)
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding if own else 0, groups=groups, bias=False
    )
    if own:
        return nn.Identity(), conv
    (top, bottom), (left, right) = pads
    return nn.ZeroPad2d((left, right, top, bottom)), conv


class InvertedBlock(nn.Module):
    """Widening 1 x 1, depthwise and narrowing 1 x 1 convolution; a shortcut where shapes allow.

    Sandler et al. 2018, section 3.3. The narrowing convolution has no activation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        kernel: int,
        stride: int,
        sides: Sequence[int],
        *,
        same: bool,
        eps: float,
        shortcut: bool,
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = nn.Sequential(
                nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner, eps), nn.ReLU6()
            )
        self.pad, self.depthwise = _padded(
            inner, inner, kernel, stride, sides, groups=inner, same=same
        )
        self.bn1 = nn.BatchNorm2d(inner, eps)
        self.relu1 = nn.ReLU6()
        self.project = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps)
        self.adds = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        inner = self.relu1(self.bn1(self.depthwise(self.pad(self.expand(x)))))
        result: Tensor = self.bn2(self.project(inner))
        return result + x if self.adds else result


class InvertedNet(nn.Module):
    """A stem of stride 2, stages of inverted blocks, a 1 x 1 head, the mean, one dense layer."""

    def __init__(
        self,
        shape: Shape,
        classes: int,
        width: float,
        stages: Stages,
        *,
        same: bool,
        eps: float,
    ) -> None:
        super().__init__()
        inputs = scaled(MOBILENET_V2_STEM, width)
        sides = list(shape[1:])
        self.pad, self.conv1 = _padded(shape[0], inputs, 3, 2, sides, same=same)
        self.bn1 = nn.BatchNorm2d(inputs, eps)
        self.relu1 = nn.ReLU6()
        sides = [-(-side // 2) for side in sides]
        blocks: list[nn.Module] = []
        for expansion, full, count, first_stride, kernel in stages:
            outputs = scaled(full, width)
            for index in range(count):
                stride = first_stride if index == 0 else 1
                blocks.append(
                    InvertedBlock(
                        inputs,
                        outputs,
                        expansion,
                        kernel,
                        stride,
                        sides,
                        same=same,
                        eps=eps,
                        # By place, not by width: a narrow network has the full one's shortcuts.
                        shortcut=index > 0,
                    )
                )
                sides = [-(-side // stride) for side in sides]
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        head = scaled(MOBILENET_V2_HEAD, width)
        self.conv2 = nn.Conv2d(inputs, head, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head, eps)
        self.relu2 = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(head, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        features = self.blocks(self.relu1(self.bn1(self.conv1(self.pad(image)))))
        features = self.pool(self.relu2(self.bn2(self.conv2(features))))
        logits: Tensor = self.fc(self.dropout(self.flatten(features)))
        return logits


def mobilenet_v2(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return MobileNet V2: 3,504,872 parameters, 301M MACs for 3 x 224 x 224.

    `width` scales the head as well, and rounds half up, not to multiples of 8.
    """
    return InvertedNet(shape, classes, width, MOBILENET_V2_STAGES, same=False, eps=1e-5)


def efficientnet_lite0(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return EfficientNet-Lite0: 4,652,008 parameters, 385M MACs for 3 x 224 x 224.

    EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation and with ReLU6. Padding and
    batch norm are TensorFlow's, so that its ImageNet weights fit (`datasets.pretrained`). `width`
    scales stem and head as well.
    """
    return InvertedNet(shape, classes, width, EFFICIENTNET_LITE0_STAGES, same=True, eps=1e-3)
