"""A slide, a model with random weights and its heatmap of the slide, for the tests of prediction and heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from helpers.slides import tissue_picture, write_tiff
from wsi_pipeline.config import ConvertRun, HeatmapRun, TissueRun
from wsi_pipeline.model.augment import to_input, to_unit
from wsi_pipeline.model.inception import InceptionV3, initialize
from wsi_pipeline.model.model_dir import ModelMetadata, load_network, save_weights, write_model_json
from wsi_pipeline.pyramid.ome_zarr import Image, read_image, write_image
from wsi_pipeline.stages import convert, heatmap, tissue

CLASSES = ("normal", "tumor")


def write_model(
    folder: Path, classes: tuple[str, ...] = CLASSES, *, bias: float = 0, confidence: float = 1, shift: float = 0
) -> Path:
    """Write a model folder with random weights for patches of 75 px at 1 um per pixel.

    `bias` is added to the logits of all classes, `shift` to that of the last; `confidence` multiplies their weights.
    """
    network = InceptionV3(len(classes))
    initialize(network, 3)
    torch.nn.init.normal_(network.fc.weight, std=0.2 * confidence, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(network.fc.bias, bias)
    with torch.no_grad():
        network.fc.bias[-1] += shift
    digest = save_weights(folder / "weights.safetensors", network.state_dict())
    write_model_json(folder / "model.json", ModelMetadata(75, 1.0, classes, digest))
    return folder


def write_slide(folder: Path, pyramid: ConvertRun) -> Path:
    """Write pyramid and tissue mask of a slide s1 with 1,300 x 1,000 px at 0.5 um per pixel into `folder`."""
    source = write_tiff(folder / "s.tif", tissue_picture(1300, 1000))
    own = folder / "s1"
    outputs = convert.Outputs(own / "pyramid.ome.zarr", own / "pyramid.json")
    convert.run("s1", convert.Inputs(source), outputs, pyramid)
    made = tissue.Outputs(own / "tissue.ome.zarr", own / "tissue.json", own / "t.png")
    tissue.run("s1", tissue.Inputs(own / "pyramid.ome.zarr"), made, TissueRun())
    return folder


def run(slides: Path, model: Path, out: Path, threads: int = 2, **options: Any) -> np.ndarray:
    """Run the stage heatmap on s1 and return the map."""
    weights, facts = model / "weights.safetensors", model / "model.json"
    inputs = heatmap.Inputs(slides=slides, weights=weights, model=facts)
    heatmap.run("s1", inputs, heatmap.Outputs(out), HeatmapRun(**options), threads=threads)
    return heat_of(out)


def heat_of(out: Path, slide: str = "s1") -> np.ndarray:
    """Read a heatmap that `run` wrote."""
    return read_image(out / f"{slide}.ome.zarr", 0.5).data


def write_slide_without_tissue(slide: Path, folder: Path, name: str) -> None:
    """Write a slide with the pyramid of `slide`'s s1 and an empty tissue mask."""
    (folder / name).mkdir(parents=True)
    empty = Image.from_corner(np.zeros((63, 82), np.uint8), 8)
    write_image(folder / name / "tissue.ome.zarr", empty, name="t", slide_mpp=0.5)
    for file in ("pyramid.ome.zarr", "pyramid.json"):
        (folder / name / file).symlink_to(slide / "s1" / file)


def probability(model: Path, patch: np.ndarray, classes: tuple[str, ...] = CLASSES, which: str = "tumor") -> float:
    """Probability of a class for one patch, by the network without inference optimisations."""
    value: float = softmax(logits_of(model, patch[None], classes), 1)[0, classes.index(which)]
    return value


def logits_of(model: Path, patches: np.ndarray, classes: tuple[str, ...] = CLASSES) -> np.ndarray:
    """Logits (n, classes) float64 of patches, by the network without inference optimisations."""
    network = load_network(model / "weights.safetensors", ModelMetadata(75, 1.0, classes, ""))
    with torch.inference_mode():
        return network(to_input(to_unit(patches.copy(), torch.device("cpu")))).double().numpy()
