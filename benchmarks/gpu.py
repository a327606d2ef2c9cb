"""All GPU measurements in one call: training, prediction, a whole slide, and the effect of bfloat16.

    python benchmarks/gpu.py [--batch 256] [--size 299] [--patches 2048] [--json OUT]

Needs PyTorch with CUDA and this package, but no network connection: patches are synthetic. Without a GPU it ends with
an error; --cpu runs the same code there (choose small numbers).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heatmap import print_rates
from rates import rate
from slides import write_slide
from torch import Tensor, nn
from train import (
    Method,
    constant_steps,
    fastest,
    forward_methods,
    predicting,
    steps_of,
    table,
    trainer_of,
    write_store,
)

from wsi_pipeline.config import ConvertRun, TrainRun
from wsi_pipeline.model.dataset import PatchDataset
from wsi_pipeline.model.device import Device, pick_device
from wsi_pipeline.model.inception import BasicConv2d
from wsi_pipeline.model.inference import run_inference
from wsi_pipeline.model.model_dir import initial_network
from wsi_pipeline.model.patch_set import PatchSet
from wsi_pipeline.model.predictor import Predictor
from wsi_pipeline.pyramid.patch_reader import PatchReader
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert


class CudnnConv2d(nn.Module):
    """Convolution, bias and ReLU in one cuDNN call."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.conv = convolution

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return torch.cudnn_convolution_relu(
            x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )


def compiled_steps(patches: PatchSet, options: TrainRun, device: Device, count: int, workers: int) -> Method:
    """Training steps compiled with `torch.compile`."""
    trainer = trainer_of(PatchDataset(patches.stores, patches.indices), options, device, workers)
    return constant_steps(trainer, options.batch_size, count, is_compiled=True)


def other_forward_methods(device: Device, size: int, batch: int, count: int) -> dict[str, Method]:
    """Alternatives to the forward pass of the package."""
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8).to(device.device)
    compiled, fused = (
        Predictor(initial_network("random", 2, 1, None), size, 1, device, batch_size=batch) for _ in range(2)
    )
    compiled._network = torch.compile(compiled._network)
    for module in list(fused._network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BasicConv2d):
                setattr(module, name, CudnnConv2d(child.conv))
    return {
        "ours, torch.compile": predicting(compiled, pixels, count),
        "ours, bias and ReLU in cuDNN's call": predicting(fused, pixels, count),
    }


def possible(methods: dict[str, Method]) -> dict[str, Method]:
    """The variants that run and fit on this device; the errors of the others are printed."""
    found = {}
    for name, method in methods.items():
        try:
            method()
        except Exception as error:  # noqa: BLE001 (compilers and drivers raise many types)
            print(f"\n{name}: not possible here: {str(error).strip().splitlines()[0]}")
        else:
            found[name] = method
    return found


def whole_stage(folder: Path, predictor: Predictor, workers: int, size: int, pixels: int) -> dict[str, float]:
    """Patches a second on a synthetic slide, at strides of one and a quarter patch, and of the bare network."""
    source = folder / "slide.tif"
    write_slide(source, pixels, pixels)
    store = folder / "pyramid.ome.zarr"
    outputs = convert.Outputs(store, folder / "pyramid.json")
    convert.run("s", convert.Inputs(source), outputs, ConvertRun(), mpp=0.25, threads=workers)
    pyramid = Pyramid(store)
    spec = pyramid.patch_spec(size, 0.25)
    batch = torch.randint(0, 256, (predictor.batch_size, size, size, 3), dtype=torch.uint8)
    there = batch.to(predictor.device.device)

    def bare() -> Iterator[int]:
        while True:
            yield len(predictor(there).cpu())

    def slide_patches(stride: float) -> Iterator[int]:
        grid = pyramid.grid(spec, spec.um * stride)
        x, y = (part.ravel() for part in np.meshgrid(grid.x(), grid.y()))
        for part in run_inference(PatchReader(pyramid, spec, x, y), predictor, workers):
            yield len(part.whole)

    return {
        "bare network, constant pixels on the device": rate(bare(), 20),
        "whole slide, stride of a patch": rate(slide_patches(1), 20),
        "whole slide, stride of a quarter patch": rate(slide_patches(0.25), 20),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patches", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pixels", type=int, default=80_000, help="edge of the synthetic slide, pixels")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    device = pick_device(os.cpu_count() or 1)
    if not device.is_cuda and not arguments.cpu:
        print("error: torch sees no GPU here", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if device.is_cuda else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {arguments.workers} workers, {arguments.size} px, batch {arguments.batch}"
    )
    options = TrainRun(start="random", batch_size=arguments.batch)
    images = arguments.steps * arguments.batch
    found: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        **{k: str(v) for k, v in vars(arguments).items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        patches = write_store(Path(folder, "s"), arguments.patches, arguments.size)
        given = patches, options, device, arguments.steps, arguments.workers
        methods = possible(steps_of(*given) | {"constant batch, torch.compile": compiled_steps(*given)})
        found["training"] = fastest(methods, arguments.rounds, device)
        table("training", images, found["training"])
        del methods
        sizes = device, arguments.size, arguments.batch, arguments.steps
        forward = possible(forward_methods(*sizes) | other_forward_methods(*sizes))
        found["prediction"] = fastest(forward, arguments.rounds, device)
        table("prediction", images, found["prediction"])
        predictor = Predictor(initial_network("random", 2, 1, None), arguments.size, 1, device)
        print(f"\nbatch of prediction: {predictor.batch_size}")
        found["slide"] = whole_stage(Path(folder), predictor, arguments.workers, arguments.size, arguments.pixels)
        print_rates("a slide", found["slide"])
    some = torch.randint(0, 256, (64, arguments.size, arguments.size, 3), dtype=torch.uint8)
    found["difference"] = predictor.max_difference_from_float32(some)
    print(f"\nlargest difference of a probability from float32: {found['difference']:.2e}")
    if device.is_cuda:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(f"peak memory of the GPU: {found['peak_gib']:.1f} GiB")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
