"""Everything that is measured on a GPU, in one call: training with real patches, prediction, and what bf16 changes.

    python benchmarks/gpu.py [--batch 256] [--size 299] [--patches 2048] [--json OUT]

Needs torch with CUDA and this package, no network: patches are drawn. On a machine without a GPU it ends with an
error, or, with --cpu, tries the same code with small numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from train import fastest, forward_ways, plain_steps, steps_of, table, write_store

from wsi_pipeline.config import TrainingRun
from wsi_pipeline.model.augment import to_input, to_unit
from wsi_pipeline.model.device import Device, pick_device
from wsi_pipeline.model.folder import starting_network
from wsi_pipeline.model.inception import folded


def difference(device: Device, size: int, batch: int) -> dict[str, float]:
    """Largest and mean difference of a tumour probability in the precision of prediction from float32."""
    network = folded(starting_network("random", 2, 1, None)).to(device.device)
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8).to(device.device)
    with torch.inference_mode():
        x = to_input(to_unit(pixels, device.device))
        exact = network(x).softmax(1)[:, 1]
        with device.autocast():
            found = network(x)
        away = (found.float().softmax(1)[:, 1] - exact).abs()
    return {"largest": away.max().item(), "mean": away.mean().item()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patches", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
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
    options = TrainingRun(start="random", batch_size=arguments.batch)
    images = arguments.steps * arguments.batch
    found: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        **{k: str(v) for k, v in vars(arguments).items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        patches = write_store(Path(folder, "s"), arguments.patches, arguments.size)
        ways = steps_of(patches, options, device, arguments.steps, arguments.workers)
        ways["plain eager float32 NCHW step, constant batch"] = plain_steps(
            options, device, arguments.size, arguments.steps
        )  # fmt: skip
        found["training"] = fastest(ways, arguments.rounds, device)
        table("training", images, found["training"])
        del ways
        forward = forward_ways(device, arguments.size, arguments.batch, arguments.steps)
        found["prediction"] = fastest(forward, arguments.rounds, device)
        table("prediction", images, found["prediction"])
    found["bf16"] = difference(device, arguments.size, min(arguments.batch, 64))
    print(f"\nprobabilities in the precision of prediction against float32: {found['bf16']}")
    if device.is_cuda:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(f"peak memory of the GPU: {found['peak_gib']:.1f} GiB")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
