"""Published tools that predict all patches of a slide, for `heatmap.py --peers`; in an environment of their own.

    python heatmap_peers.py METHOD SLIDE FOLDER THREADS SECONDS

FOLDER has `network.pt`, the plain network as TorchScript, and `corners.npy`, level-0 corners of patches. Each method is
the tool's own function with slide, patch size and network, stopped after SECONDS by what it calls for each batch.
Prints patches a second from second 5 on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rates import Pace

SIZE, BATCH = 299, 32


class EnoughError(Exception):
    """Raised by a callback when the measurement is over."""


def wsinfer(slide: Path, folder: Path, pace: Pace, workers: int, speedup: bool = False) -> None:
    """The function of `wsinfer run` for the patches that are found, which are given here."""
    import h5py
    from wsinfer.modellib import run_inference as module
    from wsinfer.modellib.models import LocalModelTorchScript
    from wsinfer_zoo.client import ModelConfiguration, TransformConfigurationItem

    def watched(loader: Iterable[Any]) -> Iterator[Any]:
        """In place of the progress bar: a batch is done when the next one is asked for."""
        for batch in loader:
            yield batch
            if pace.is_over(len(batch[0])):
                raise EnoughError

    slides, results = folder / "slides", folder / "results"
    for path in (slides, results / "patches"):
        path.mkdir(parents=True)
    (slides / slide.name).symlink_to(slide.resolve())
    with h5py.File(results / "patches" / f"{slide.stem}.h5", "w") as file:
        corners = file.create_dataset("coords", data=np.load(folder / "corners.npy"))
        corners.attrs.update({"patch_level": 0, "patch_size": SIZE})
    module.tqdm.tqdm = watched
    transform = [
        TransformConfigurationItem("ToTensor", None),
        TransformConfigurationItem("Normalize", {"mean": [0.5] * 3, "std": [0.5] * 3}),
    ]
    configuration = ModelConfiguration(
        architecture="inception_v3",
        num_classes=2,
        class_names=["normal", "tumor"],
        patch_size_pixels=SIZE,
        spacing_um_px=0.25,
        transform=transform,
    )
    model = LocalModelTorchScript(configuration, str(folder / "network.pt"))
    module.run_inference(slides, results, model, batch_size=BATCH, num_workers=workers, speedup=speedup)


def lazyslide(slide: Path, folder: Path, pace: Pace, workers: int) -> None:
    """`feature_extraction` with the network's outputs as features, of the tiles that it finds itself."""
    import lazyslide as zs
    from torchvision.transforms import v2

    network = torch.jit.load(folder / "network.pt").eval()

    def watched(images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = network(images)
        if pace.is_over(len(images)):
            raise EnoughError
        return out

    opened = zs.open_wsi(str(slide), store=str(folder / "lazyslide.zarr"))
    zs.pp.find_tissues(opened)
    zs.pp.tile_tissues(opened, SIZE)
    scaled = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    zs.tl.feature_extraction(
        opened,
        watched,
        model_name="inception_v3",
        transform=scaled,
        batch_size=BATCH,
        num_workers=workers,
        device="cpu",
        pbar=False,
    )


METHODS: dict[str, Callable[..., None]] = {
    "wsinfer": wsinfer,
    "wsinfer-speedup": lambda *arguments: wsinfer(*arguments, speedup=True),
    "lazyslide": lazyslide,
}


def main() -> None:
    method, slide, folder, threads, seconds = sys.argv[1:]
    workers = int(threads) if method.endswith("-workers") else 0
    torch.set_num_threads(int(threads))
    pace = Pace(float(seconds))
    try:
        METHODS[method.removesuffix("-workers")](Path(slide), Path(folder), pace, workers)
    except EnoughError:
        print(pace.rate())


if __name__ == "__main__":
    main()
