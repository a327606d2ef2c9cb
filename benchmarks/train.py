"""Training and forward pass: steps on stored patches against a constant batch, this package against plain PyTorch.

    python benchmarks/train.py [--size 299] [--batch 16] [--steps 6] [--rounds 3] [--threads 2]

Patches are noise in tissue colours, stored as JPEG like those of the stage patches. Variants alternate, and the fastest
round of each counts. Prints Markdown tables. On a GPU run benchmarks/gpu.py, which uses these functions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from wsi_pipeline.config import TrainRun
from wsi_pipeline.geometry import Size
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.dataset import PatchDataset, Prefetcher
from wsi_pipeline.model.device import Device, pick_device
from wsi_pipeline.model.model_dir import initial_network
from wsi_pipeline.model.patch_set import PatchSet
from wsi_pipeline.model.predictor import Predictor
from wsi_pipeline.model.trainer import Trainer
from wsi_pipeline.pyramid.codecs import image_codec
from wsi_pipeline.pyramid.patch_store import write_patches

Method = Callable[[], None]


def write_store(folder: Path, count: int, size: int) -> PatchSet:
    """Patches of one slide, half of them tumour, without a receipt."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(90, 230, (count, -(-size // 8), -(-size // 8), 3), np.uint8)

    def read(start: int, stop: int) -> np.ndarray:
        pixels = coarse[start:stop].repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
        return np.clip(pixels.astype(np.int16) + rng.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)

    folder.mkdir(parents=True)
    codec = image_codec("jpeg", Size(size, size), 95)
    write_patches(folder / "patches.zarr", count, size, 0, codec, read, 1)
    labels = (np.arange(count) % 2).astype(np.int8)
    pq.write_table(pa.table({"label": labels}), folder / "patches.parquet")
    return PatchSet([folder / "patches.json"])


def synchronize(device: Device) -> None:
    if device.is_cuda:
        torch.cuda.synchronize()


def fastest(methods: dict[str, Method], rounds: int, device: Device) -> dict[str, float]:
    """Seconds of the fastest of `rounds` rounds of each variant, alternating, after a warm-up round."""
    best = dict.fromkeys(methods, float("inf"))
    for number in range(rounds + 1):
        for name, method in methods.items():
            synchronize(device)
            started = time.perf_counter()
            method()
            synchronize(device)
            if number:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def table(title: str, images: int, seconds: dict[str, float]) -> None:
    first = next(iter(seconds.values()))
    print(f"\n| {title} | images/s | times the first |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {images / value:.1f} | {first / value:.2f} |", flush=True)


def with_tf32() -> AbstractContextManager[None]:
    """Context with TF32 enabled for convolutions: PyTorch's default, which the package disables."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)


def trainer_of(dataset: PatchDataset, options: TrainRun, device: Device, workers: int) -> Trainer:
    network = initial_network("random", 2, 1, None)
    nothing, none = PatchDataset([], []), Checkpoints(Path("none"))
    return Trainer(network, dataset, nothing, options, device, none, "", workers=workers)


def constant_steps(made: Trainer, batch: int, count: int, *, is_compiled: bool = False) -> Method:
    """`count` training steps on a constant batch on the device."""
    picked = made._sampler.batch(0, batch)
    pixels = torch.from_numpy(np.stack([made._dataset.read(int(k)) for k in picked])).to(made._device.device)
    if is_compiled:
        made._set_trainable(0)
        made._loss = torch.compile(made._loss)

    def run() -> None:
        for step in range(count):
            made._collect_loss((step, picked, made._step(step, picked, pixels)))
        made._collect_loss(None)

    return run


def sampled_steps(made: Trainer, batch: int, count: int, workers: int) -> Method:
    """`count` training steps on sampled patches."""

    def run() -> None:
        index = (made._sampler.batch(step, batch) for step in range(count))
        for step, (picked, pixels) in enumerate(
            Prefetcher(made._dataset, index, workers=workers, pin=made._device.is_cuda)
        ):
            made._collect_loss((step, picked, made._step(step, picked, pixels)))
        made._collect_loss(None)

    return run


def steps_of(patches: PatchSet, options: TrainRun, device: Device, count: int, workers: int) -> dict[str, Method]:
    """Variants of `count` training steps; the first is the baseline."""
    in_memory = PatchDataset(patches.stores, patches.indices, memory_gib=64, workers=workers)
    on_disk = PatchDataset(patches.stores, patches.indices, memory_gib=0)
    batch = options.batch_size

    def made(dataset: PatchDataset, dtype: torch.dtype = device.dtype) -> Trainer:
        return trainer_of(dataset, options, Device(device.device, dtype), workers)

    other = torch.float32 if device.dtype == torch.bfloat16 else torch.bfloat16
    return {
        f"constant batch, {device.precision}": constant_steps(made(in_memory), batch, count),
        "pixels in memory": sampled_steps(made(in_memory), batch, count, workers),
        "JPEG, read from disk": sampled_steps(made(on_disk), batch, count, workers),
        f"pixels in memory, {other}".replace("torch.", ""): sampled_steps(
            made(in_memory, other), batch, count, workers
        ),
        "plain eager float32 NCHW step, constant batch": plain_steps(options, device, in_memory.edge_px, count),
    }


def plain_steps(options: TrainRun, device: Device, size: int, count: int) -> Method:
    """Plain training steps: NCHW, float32, no augmentation, on a constant batch of floats."""
    network = initial_network("random", 2, 1, None).to(device.device).train()
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-4)
    x = torch.rand(options.batch_size, 3, size, size, device=device.device)
    labels = torch.arange(options.batch_size, device=device.device) % 2

    def run() -> None:
        with with_tf32():
            for _ in range(count):
                optimizer.zero_grad()
                loss = F.cross_entropy(network(x), labels)
                loss.backward()
                optimizer.step()
                loss.item()

    return run


def forward_methods(device: Device, size: int, batch: int, count: int) -> dict[str, Method]:
    """Variants of the forward pass, from uint8 pixels to probabilities; benchmarks/heatmap.py has more for CPUs."""
    network = initial_network("random", 2, 1, None).eval().to(device.device)
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8).to(device.device)

    def plain() -> None:
        with torch.inference_mode(), with_tf32():
            for _ in range(count):
                network(pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()).softmax(1)

    methods: dict[str, Method] = {"plain eager float32 NCHW": plain}
    for dtype in (torch.float32, torch.bfloat16):
        predictor = Predictor(network, size, 1, Device(device.device, dtype), batch_size=batch)
        methods[f"ours, {predictor.device.precision}"] = predicting(predictor, pixels, count)
    return methods


def predicting(predictor: Predictor, pixels: torch.Tensor, count: int) -> Method:
    """Predict the same pixels `count` times."""

    def run() -> None:
        for _ in range(count):
            predictor(pixels)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patches", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2, help="threads of the network on a CPU")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    device = pick_device(arguments.threads)
    name = torch.cuda.get_device_name() if device.is_cuda else f"CPU, {arguments.threads} threads"
    print(f"{name}, torch {torch.__version__}, {arguments.size} px, batch {arguments.batch}")
    options = TrainRun(start="random", batch_size=arguments.batch, cpu_threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        patches = write_store(Path(folder, "s"), arguments.patches, arguments.size)
        methods = steps_of(patches, options, device, arguments.steps, arguments.workers)
        images = arguments.steps * arguments.batch
        table("training", images, fastest(methods, arguments.rounds, device))
        forward = forward_methods(device, arguments.size, arguments.batch, arguments.steps)
        table("prediction", images, fastest(forward, arguments.rounds, device))


if __name__ == "__main__":
    sys.exit(main())
