"""Log odds of tumour of batches of uint8 patches, with the network in its fastest form for the device."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.model.augment import ORIENTATIONS, orient, to_input, to_unit
from wsi_pipeline.model.device import Device
from wsi_pipeline.model.inception import BasicConv2d, InceptionV3, fold_batch_norms

log = logging.getLogger(__name__)

# Larger batches are no faster on a CPU: activations of four patches just fit its caches. For a single patch oneDNN
# selects other kernels, which differ in the last bits; from two on results do not depend on the batch size.
CPU_BATCH = 4
_LEAST_BATCH = 2
_GPU_BATCH = 512
_MEMORY_SHARE = 0.7


class FusedConv2d(nn.Module):
    """Convolution, bias and ReLU in one oneDNN call, with weights in oneDNN's preferred memory layout.

    The layout depends on the shape of the input; weights are reordered at the first batch of each shape.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.detach(), requires_grad=False)
        self.bias = convolution.bias
        self._stride: list[int] = list(convolution.stride)
        self._padding: list[int] = list(convolution.padding)  # type: ignore[arg-type]
        self._packed: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        weight = self._packed.get(x.shape)
        if weight is None:
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self._padding, self._stride, [1, 1], 1, list(x.shape)
            )
            self._packed[x.shape] = weight
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, self._padding, self._stride, [1, 1], 1, "relu", [], ""
        )
        return out


def optimized_for(network: InceptionV3, device: Device) -> InceptionV3:
    """Copy of the network for inference on `device`: folded, in the device's dtype but for the last layer (float64).

    Libraries add up the products of that layer in an order that depends on the size of the batch. In float64 that does
    not reach the log odds, which are rounded to float32.

    On a CPU with oneDNN its convolutions are fused.
    """
    out = fold_batch_norms(network).to(device.dtype)
    out.fc.double()
    if not device.is_cuda and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        for module in list(out.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, BasicConv2d):
                    setattr(module, name, FusedConv2d(child.conv))
    return out.to(device.device)


def log_odds(logits: Tensor, positive: int) -> Tensor:
    """Log odds (n,) of the class `positive` from logits (n, classes), log p / (1 - p) without computing p.

    With two classes it is the difference of their logits. Unlike p, it never rounds to that of a less confident patch.
    """
    others = [k for k in range(logits.shape[1]) if k != positive]
    return logits[:, positive] - logits[:, others].logsumexp(1)


class Predictor:
    """Computes log odds of tumour of batches of patches; thread-safe on a CPU."""

    def __init__(
        self,
        network: InceptionV3,
        size_px: int,
        tumor: int,
        device: Device,
        *,
        batch_size: int | None = None,
        orientations: bool = False,
    ) -> None:
        """`tumor` is the index of its class; `batch_size` None means the fastest that fits the memory.

        `orientations` takes the mean probability of the 8 orientations of a patch (test-time augmentation).
        """
        self.device = device
        self._tumor = tumor
        self._orientations = orientations
        self._source = network
        self._network = optimized_for(network, device)
        self._size_px = size_px
        self._max_batch = _GPU_BATCH if device.is_cuda else CPU_BATCH
        self.batch_size = max(_LEAST_BATCH, batch_size or self._default_batch())
        self._max_batch = self.batch_size
        # Warm-up: the first batch of a shape reorders weights (oneDNN) or benchmarks algorithms (cuDNN).
        self(torch.zeros((self.batch_size, size_px, size_px, 3), dtype=torch.uint8))

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Patches (n, size_px, size_px, 3) uint8 to log odds (n,) float32 on the device.

        Out of memory, the batch is halved until it fits. Raises `ModelError` where not even two patches do.
        """
        while True:
            size = self._max_batch
            try:
                parts = [self._log_odds(pixels[k : k + size]) for k in range(0, len(pixels), size)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError as error:
                self._halve(size, error)

    @torch.inference_mode()
    def max_difference_from_float32(self, pixels: Tensor) -> float:
        """Largest absolute difference of the probabilities of `pixels` from those in float32."""
        exact = Predictor(
            self._source,
            self._size_px,
            self._tumor,
            Device(self.device.device),
            batch_size=min(self._max_batch, len(pixels)),
            orientations=self._orientations,
        )
        return float((self(pixels).sigmoid() - exact(pixels).sigmoid()).abs().max())

    def _halve(self, most: int, error: Exception) -> None:
        if most <= _LEAST_BATCH:
            raise ModelError(
                f"a batch of {most} patches does not fit the memory of the device ({error})",
                remedy="Free memory on it, or predict on another device",
            ) from error
        self._max_batch = min(self._max_batch, max(_LEAST_BATCH, most // 2))
        if self.device.is_cuda:
            torch.cuda.empty_cache()
        log.warning("a batch of %d patches does not fit the memory, continuing with %d", most, self._max_batch)

    def _log_odds(self, pixels: Tensor) -> Tensor:
        # Pad the last batch: cuDNN benchmarks each shape anew, and other shapes may give other last bits.
        missing = self._max_batch - len(pixels)
        unit = to_unit(pixels, self.device.device)
        if missing > 0:
            unit = torch.cat([unit, unit[-1:].expand(missing, -1, -1, -1)])
        return self._forward_orientations(unit)[: len(pixels)].float()

    def _forward_orientations(self, unit: Tensor) -> Tensor:
        if not self._orientations:
            return self._forward(unit)
        each = torch.stack([self._forward(orient(unit, kind)) for kind in range(ORIENTATIONS)])
        # The log odds of the mean probability, which itself would round to 1 for a confident network.
        return F.logsigmoid(each).logsumexp(0) - F.logsigmoid(-each).logsumexp(0)

    def _forward(self, unit: Tensor) -> Tensor:
        return log_odds(self._network(to_input(unit).to(self.device.dtype)), self._tumor)

    def _default_batch(self) -> int:
        if not self.device.is_cuda:
            return CPU_BATCH
        few = 16
        self._max_batch = few
        torch.cuda.reset_peak_memory_stats(self.device.device)
        before = torch.cuda.memory_allocated(self.device.device)
        self(torch.zeros((few, self._size_px, self._size_px, 3), dtype=torch.uint8))
        each = (torch.cuda.max_memory_allocated(self.device.device) - before) / few
        free: float = torch.cuda.mem_get_info(self.device.device)[0]
        return largest_batch(free, each, _GPU_BATCH)


def largest_batch(free: float, each: float, most: int) -> int:
    """Largest power of two of patches of `each` bytes that fits 70 % of `free` bytes, from 2 to `most`."""
    fit: int = 2 ** math.floor(math.log2(max(2.0, _MEMORY_SHARE * free / each)))
    return max(_LEAST_BATCH, min(most, fit))
