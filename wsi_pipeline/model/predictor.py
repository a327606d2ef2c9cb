"""The network as it predicts: batch norms folded, in the fastest form for its device, fed with uint8 pixels."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.model.augment import ORIENTATIONS, orient, to_input, to_unit
from wsi_pipeline.model.device import Device
from wsi_pipeline.model.inception import BasicConv2d, InceptionV3, fold_batch_norms

log = logging.getLogger(__name__)

# More is no faster on a CPU: what a batch of four needs just fits into its caches. A batch of one takes
# other ways through oneDNN, whose last bits differ; from two on they do not depend on the batch.
CPU_BATCH = 4
_LEAST_BATCH = 2
_GPU_BATCH = 512
_MEMORY_SHARE = 0.7


class FusedConv2d(nn.Module):
    """Convolution with bias, and ReLU, in one call of oneDNN, with weights in the layout that it likes best.

    The layout depends on the shape of the input, so it is made at the first batch of a shape and kept.
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
    """A copy of the network for prediction on `device`, which takes inputs of its type; else the same function."""
    out = fold_batch_norms(network).to(device.dtype)
    out.fc.float()
    if not device.is_cuda and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        for module in list(out.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, BasicConv2d):
                    setattr(module, name, FusedConv2d(child.conv))
    return out.to(device.device)


class Predictor:
    """Tumour probabilities of batches of patches; on a CPU, safe between threads."""

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
        """`batch_size` None is what is fastest and fits; `orientations` averages over all 8 of a patch."""
        self.device, self._tumor, self._orientations = device, tumor, orientations
        self._given, self._network = network, optimized_for(network, device)
        self._size_px = size_px
        self._most = _GPU_BATCH if device.is_cuda else CPU_BATCH
        self.batch_size = max(_LEAST_BATCH, batch_size or self._fitting())
        self._most = self.batch_size
        # The first batch of a size takes long: it lays out weights, or looks for the fastest algorithms.
        self(torch.zeros((self.batch_size, size_px, size_px, 3), dtype=torch.uint8))

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, size, size, 3) uint8 to (n,) float32 on the device, n up to `batch_size`.

        Where memory is short, the batch is halved until it fits. Raises `ModelError` where not even two patches do.
        """
        while True:
            most = self._most
            try:
                parts = [self._probabilities(pixels[k : k + most]) for k in range(0, len(pixels), most)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError as error:
                self._halve(most, error)

    @torch.inference_mode()
    def difference(self, pixels: Tensor) -> float:
        """Largest difference of a probability from what float32 gives, over a batch."""
        exact = Predictor(
            self._given,
            self._size_px,
            self._tumor,
            Device(self.device.device),
            batch_size=min(self._most, len(pixels)),
            orientations=self._orientations,
        )
        return float((self(pixels) - exact(pixels)).abs().max())

    def _halve(self, most: int, error: Exception) -> None:
        if most <= _LEAST_BATCH:
            raise ModelError(
                f"a batch of {most} patches does not fit the memory of the device ({error})",
                remedy="Free memory there, or predict on another device",
            ) from error
        self._most = min(self._most, max(_LEAST_BATCH, most // 2))
        if self.device.is_cuda:
            torch.cuda.empty_cache()
        log.warning("a batch of %d patches does not fit the memory, going on with %d", most, self._most)

    def _probabilities(self, pixels: Tensor) -> Tensor:
        # All batches have the same size: a GPU looks for the fastest algorithms only once, and no result
        # depends on how many patches there are.
        missing = self._most - len(pixels)
        unit = to_unit(pixels, self.device.device)
        if missing > 0:
            unit = torch.cat([unit, unit[-1:].expand(missing, -1, -1, -1)])
        return self._mean(unit)[: len(pixels)]

    def _mean(self, unit: Tensor) -> Tensor:
        if not self._orientations:
            return self._of(unit)
        total = self._of(unit)
        for kind in range(1, ORIENTATIONS):
            total = total + self._of(orient(unit, kind))
        return total / ORIENTATIONS

    def _of(self, unit: Tensor) -> Tensor:
        logits: Tensor = self._network(to_input(unit).to(self.device.dtype))
        return logits.softmax(1)[:, self._tumor]

    def _fitting(self) -> int:
        if not self.device.is_cuda:
            return CPU_BATCH
        few = 16
        self._most = few
        torch.cuda.reset_peak_memory_stats(self.device.device)
        before = torch.cuda.memory_allocated(self.device.device)
        self(torch.zeros((few, self._size_px, self._size_px, 3), dtype=torch.uint8))
        each = (torch.cuda.max_memory_allocated(self.device.device) - before) / few
        free: float = torch.cuda.mem_get_info(self.device.device)[0]
        return largest_batch(free, each, _GPU_BATCH)


def largest_batch(free: float, each: float, most: int) -> int:
    """The largest power of two of patches, `each` bytes, that fits into most of the `free` bytes; 2 to `most`."""
    fit: int = 2 ** math.floor(math.log2(max(2.0, _MEMORY_SHARE * free / each)))
    return max(_LEAST_BATCH, min(most, fit))
