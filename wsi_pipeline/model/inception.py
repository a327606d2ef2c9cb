"""Inception-v3 (Szegedy et al., CVPR 2016) with torchvision's parameter names.

Torchvision's published ImageNet weights load into `InceptionV3(classes=1000, auxiliary=True)`. Input pixels are scaled
to [-1, 1]; the smallest input is 75 px.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

# The auxiliary head applies a 5 x 5 convolution after pooling with stride 3: smaller inputs leave no pixel.
MIN_AUXILIARY_PX = 299
FEATURES = 2048
_DROPOUT = 0.5


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)


def _logits(layer: nn.Linear, x: Tensor) -> Tensor:
    """Linear layer in the precision of its weights, also under autocast: bfloat16 logits would give tied scores."""
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = layer(x.to(layer.weight.dtype))
        return out


class InceptionA(nn.Module):
    """35 x 35 block (at 299 px)."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 64, 1)
        self.branch5x5_1 = BasicConv2d(inputs, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.branch1x1(x)
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([narrow, wide, double, self.branch_pool(_pooled(x))], 1)


class InceptionB(nn.Module):
    """Reduction from 35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """17 x 17 block with factorised 7 x 7 convolutions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7_1 = BasicConv2d(inputs, width, 1)
        self.branch7x7_2 = BasicConv2d(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = BasicConv2d(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = BasicConv2d(inputs, width, 1)
        self.branch7x7dbl_2 = BasicConv2d(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = BasicConv2d(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = BasicConv2d(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = BasicConv2d(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_pooled(x))], 1)


class InceptionD(nn.Module):
    """Reduction from 17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(inputs, 192, 1)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.branch3x3_2(self.branch3x3_1(x))
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([narrow, wide, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """8 x 8 block with split 3 x 3 convolutions."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 320, 1)
        self.branch3x3_1 = BasicConv2d(inputs, 384, 1)
        self.branch3x3_2a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(inputs, 448, 1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(_pooled(x)),
            ],
            1,
        )


class InceptionAux(nn.Module):
    """Auxiliary classifier on the 17 x 17 features."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv0 = BasicConv2d(inputs, 128, 1)
        self.conv1 = BasicConv2d(128, 768, 5)
        self.fc = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.conv0(F.avg_pool2d(x, kernel_size=5, stride=3)))
        return _logits(self.fc, F.adaptive_avg_pool2d(x, 1).flatten(1))


class InceptionV3(nn.Module):
    """Images (n, 3, h, w) float in [-1, 1] to logits (n, classes).

    `keep` (n, 2048) is the dropout mask of training, by which the features before the last layer are multiplied: see
    `dropout_mask`. `nn.Dropout` would draw from the global generator, so a resumed training would draw other masks.
    """

    def __init__(self, classes: int = 2, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.Mixed_5b = InceptionA(192, pool=32)
        self.Mixed_5c = InceptionA(256, pool=64)
        self.Mixed_5d = InceptionA(288, pool=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, width=128)
        self.Mixed_6c = InceptionC(768, width=160)
        self.Mixed_6d = InceptionC(768, width=160)
        self.Mixed_6e = InceptionC(768, width=192)
        self.AuxLogits = InceptionAux(768, classes) if auxiliary else None
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        self.fc = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self._classify(self._features_17(x), keep)

    def with_auxiliary(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the main and of the auxiliary head, (n, classes) each."""
        if self.AuxLogits is None:
            raise ValueError("this network has no auxiliary head")
        features = self._features_17(x)
        return self._classify(features, keep), self.AuxLogits(features)

    def _features_17(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)
        out: Tensor = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        return out

    def _classify(self, x: Tensor, keep: Tensor | None) -> Tensor:
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        x = F.adaptive_avg_pool2d(x.to(self.fc.weight.dtype), 1).flatten(1)
        return _logits(self.fc, x if keep is None else x * keep)


def fold_batch_norms(network: InceptionV3) -> InceptionV3:
    """Copy for inference: batch norms folded into their convolutions, channels-last memory format."""
    out = copy.deepcopy(network).eval()
    for module in list(out.modules()):
        if isinstance(module, BasicConv2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()  # type: ignore[assignment]
    moved: InceptionV3 = out.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def dropout_mask(count: int, seed: int, step: int) -> Tensor:
    """Inverted-dropout mask (count, 2048) float32 of a step, a function of (seed, step): 0, or 2 where kept."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    kept = torch.rand(count, FEATURES, generator=generator) >= _DROPOUT
    return kept / (1 - _DROPOUT)


def initialize(network: InceptionV3, seed: int) -> None:
    """Random weights: He et al. (ICCV 2015) for convolutions, a normal of small variance for linear layers."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            initialize_head(module, generator)


def initialize_head(layer: nn.Linear, generator: torch.Generator) -> None:
    """Random weights of a last layer: normal with standard deviation 0.01, zero bias."""
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
