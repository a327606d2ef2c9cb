"""Heatmaps: the forward pass against plain PyTorch, the whole stage against the bare network and other tools.

    python benchmarks/heatmap.py SLIDE.tif [--threads 2] [--seconds 60] [--peers wsinfer=PYTHON lazyslide=PYTHON]
    python benchmarks/heatmap.py HUGE.tif --memory         reading and memory at full size (a slide of slides.py)

SLIDE is converted first, which is not measured; its scale is assumed to be 0.25 um per pixel. Patches have 299 px, the
network random weights. Rates exclude the first 5 s. Prints Markdown tables. On a GPU run benchmarks/gpu.py.
Other tools run in their own environments: see peers-wsinfer.txt and peers-lazyslide.txt.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rates import rate
from torch import Tensor

from wsi_pipeline.config import ConvertRun, TissueRun
from wsi_pipeline.masks.label_images import grid_fractions
from wsi_pipeline.model.augment import to_input, to_unit
from wsi_pipeline.model.device import Device, pick_device
from wsi_pipeline.model.inception import InceptionV3, fold_batch_norms
from wsi_pipeline.model.inference import map_ordered, run_inference
from wsi_pipeline.model.model_dir import initial_network
from wsi_pipeline.model.predictor import CPU_BATCH, Predictor, optimized_for
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.patch_reader import PatchReader
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert, tissue

SIZE, MPP = 299, 0.25
# Each tool with its default settings, and with its fastest ones on a CPU.
PEER_METHODS = {
    "wsinfer": ("wsinfer", "wsinfer-speedup", "wsinfer-workers"),
    "lazyslide": ("lazyslide", "lazyslide-workers"),
}


def best(run: Callable[[], object], patches: int) -> float:
    """Patches a second of the fastest of four calls, after a warm-up call."""
    run()
    found = 0.0
    for _ in range(4):
        began = time.perf_counter()
        run()
        found = max(found, patches / (time.perf_counter() - began))
    return found


def print_rates(title: str, rows: dict[str, float]) -> None:
    first = next(iter(rows.values()))
    print(f"\n| {title} | patches/s | times the first |\n|---|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.2f} | {value / first:.2f} |", flush=True)


def bare(predictor: Predictor, threads: int) -> Iterator[int]:
    """Run the network on a constant batch, in threads like the stage."""
    pixels = torch.randint(0, 256, (predictor.batch_size, SIZE, SIZE, 3), dtype=torch.uint8)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for found in map_ordered(pool, lambda _: predictor(pixels), range(10**9), 2 * threads):
            yield len(found)


def forward_methods(network: InceptionV3, predictors: Sequence[Predictor], threads: int) -> dict[str, float]:
    """Patches a second from pixels to probabilities; plain PyTorch at several batch sizes."""
    rows = {}
    channels_last = fold_batch_norms(network)
    for batch in (32, 16, 4):
        pixels = torch.randint(0, 256, (batch, SIZE, SIZE, 3), dtype=torch.uint8)

        def plain(pixels: Tensor = pixels) -> Tensor:
            with torch.inference_mode():
                x = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
                return network(x).softmax(1)[:, 1]

        def last(pixels: Tensor = pixels) -> Tensor:
            with torch.inference_mode():
                return channels_last(to_input(to_unit(pixels, torch.device("cpu")))).softmax(1)[:, 1]

        torch.set_num_threads(threads)
        rows[f"plain eager float32 NCHW, batch {batch}"] = best(plain, batch)
        rows[f"batch norms folded, channels last, batch {batch}"] = best(last, batch)
    torch.set_num_threads(1)
    few = torch.randint(0, 256, (64, SIZE, SIZE, 3), dtype=torch.uint8)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for predictor in predictors:

            def ours(predictor: Predictor = predictor) -> None:
                deque(pool.map(predictor, few.split(predictor.batch_size)))

            method = f"ours, {predictor.device.precision}, batch {predictor.batch_size} in each of {threads} threads"
            rows[method] = best(ours, len(few))
    return rows


def largest_difference(network: InceptionV3, device: Device) -> float:
    """Largest difference of a logit between the optimised and the plain network."""
    pixels = torch.randint(0, 256, (16, SIZE, SIZE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        x = to_input(to_unit(pixels, torch.device("cpu")))
        return float((optimized_for(network, device)(x) - network(x)).abs().max())


def corners(folder: Path, stride: float) -> tuple[Pyramid, np.ndarray, np.ndarray]:
    """Level-0 corners of patches with tissue, `stride` patches apart."""
    pyramid = Pyramid(folder / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(SIZE, MPP)
    grid = pyramid.grid(spec, spec.um * stride)
    mask = read_image(folder / "tissue.ome.zarr", pyramid.mpp)
    rows, columns = np.nonzero(grid_fractions(mask.data > 0, mask.mpp, grid, pyramid.mpp) > 0)
    return pyramid, grid.x()[columns], grid.y()[rows]


def whole_stage(folder: Path, predictor: Predictor, threads: int, stride: float) -> Iterator[int]:
    pyramid, x, y = corners(folder, stride)
    reader = PatchReader(pyramid, pyramid.patch_spec(SIZE, MPP), x, y)
    for part in run_inference(reader, predictor, threads):
        yield len(part.whole)


class Patches(torch.utils.data.Dataset):
    """Dataset as in published tools: each patch is read as a region of the slide."""

    def __init__(self, source: Path, x: np.ndarray, y: np.ndarray) -> None:
        self._source, self._x, self._y = source, x.tolist(), y.tolist()
        self._slide = None

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, k: int) -> Tensor:
        import openslide

        if self._slide is None:
            self._slide = openslide.OpenSlide(self._source)
        region = self._slide.read_region((self._x[k], self._y[k]), 0, (SIZE, SIZE)).convert("RGB")
        return torch.from_numpy(np.asarray(region).copy()).permute(2, 0, 1).float().div(255)


def loader_loop(folder: Path, source: Path, network: InceptionV3, threads: int, workers: int) -> Iterator[int]:
    """OpenSlide regions through a DataLoader into the plain network, in batches of 32, row by row."""
    _, x, y = corners(folder, 1)
    torch.set_num_threads(threads)
    loader = torch.utils.data.DataLoader(Patches(source, x, y), batch_size=32, num_workers=workers)
    with torch.inference_mode():
        for batch in loader:
            network(batch.sub(0.5).div(0.5)).softmax(1)
            yield len(batch)


def peer(method: str, python: str, folder: Path, source: Path, threads: int, seconds: float) -> float:
    """A published tool with the same network: see heatmap_peers.py."""
    with tempfile.TemporaryDirectory() as name:
        given = Path(name)
        _, x, y = corners(folder, 1)
        np.save(given / "corners.npy", np.stack([x, y], axis=1))
        network = initial_network("random", 2, 1, None).eval()
        torch.jit.trace(network, torch.zeros(2, 3, SIZE, SIZE)).save(str(given / "network.pt"))
        command = [python, str(Path(__file__).with_name("heatmap_peers.py")), method, str(source), name]
        done = subprocess.run(  # noqa: S603
            [*command, str(threads), str(seconds)], stdout=subprocess.PIPE, text=True, check=True
        )
        return float(done.stdout.split()[-1])


def memory(folder: Path, threads: int) -> None:
    """Read all patches of a slide, but run the network on 40 batches only: all would take hours on a CPU."""

    def resident() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    predictor = Predictor(initial_network("random", 2, 1, None), SIZE, 1, pick_device(1))
    before = resident()
    print(f"\nthe process with its model: {before:.0f} MiB")
    print("\n| stride | patches | chunks decoded, of those touched | wall, s | peak memory beyond the model, MiB |")
    print("|---|---|---|---|---|")
    for stride in (1.0, 0.25):
        pyramid, x, y = corners(folder, stride)
        reader = PatchReader(pyramid, pyramid.patch_spec(SIZE, MPP), x, y)
        seen = max(1, len(reader) // CPU_BATCH // 40)
        began = time.perf_counter()

        def work(start: int, reader: PatchReader = reader, seen: int = seen) -> None:
            pixels = torch.empty((min(CPU_BATCH, len(reader) - start), *reader.shape), dtype=torch.uint8)
            reader.read(start, pixels.numpy())
            if start // CPU_BATCH % seen == 0:
                predictor(pixels)

        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in map_ordered(pool, work, range(0, len(reader), CPU_BATCH), 2 * threads):
                pass
        seconds = time.perf_counter() - began
        counts = f"{len(reader)} | {reader.chunks_decoded} of {reader.chunks_needed}"
        print(f"| {stride} patch | {counts} | {seconds:.0f} | {resident() - before:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    arguments = parser.parse_args()
    threads = arguments.threads
    device = pick_device(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = folder / "pyramid.ome.zarr"
        outputs = convert.Outputs(store, folder / "pyramid.json")
        convert.run("s", convert.Inputs(arguments.slide), outputs, ConvertRun(), mpp=MPP, threads=threads)
        made = tissue.Outputs(folder / "tissue.ome.zarr", folder / "tissue.json", folder / "t.png")
        tissue.run("s", tissue.Inputs(store), made, TissueRun(), threads=threads)
        if arguments.memory:
            memory(folder, threads)
            return
        network = initial_network("random", 2, 1, None).eval()
        predictor = Predictor(network, SIZE, 1, device)
        rounded = Predictor(network, SIZE, 1, pick_device(threads, "bfloat16"))
        print_rates("forward pass", forward_methods(network, (predictor, rounded), threads))
        print(f"\nlargest difference of a logit from the plain network: {largest_difference(network, device):.1e}")
        methods = {
            "bare network, constant pixels": lambda: bare(predictor, threads),
            "whole stage, stride of a patch": lambda: whole_stage(folder, predictor, threads, 1),
            "whole stage, stride of a quarter patch": lambda: whole_stage(folder, predictor, threads, 0.25),
            "bare network, constant pixels, bfloat16": lambda: bare(rounded, threads),
            "whole stage, stride of a patch, bfloat16": lambda: whole_stage(folder, rounded, threads, 1),
            "OpenSlide and DataLoader, 0 workers": lambda: loader_loop(folder, arguments.slide, network, threads, 0),
            f"OpenSlide and DataLoader, {threads} workers": lambda: loader_loop(
                folder, arguments.slide, network, threads, threads
            ),
        }
        rows = {}
        for name_of_method, method in methods.items():
            torch.set_num_threads(1)
            rows[name_of_method] = rate(method(), arguments.seconds)
        for name_of_peer, python in (one.split("=", 1) for one in arguments.peers):
            for method in PEER_METHODS[name_of_peer]:
                rows[method] = peer(method, python, folder, arguments.slide, threads, arguments.seconds)
        print_rates("a slide", rows)


if __name__ == "__main__":
    sys.exit(main())
