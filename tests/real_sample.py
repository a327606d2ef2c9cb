"""Small slides assembled from the 89 real Camelyon16 patches, for `config/real-sample.yaml`.

    python tests/real_sample.py DATA OUT      DATA holds camelyon16-patches/{tumor,normal}/SLIDE_X_Y.png

The patches (256 px, level 0) come from four slides, which are also the patients. No slide is in two
splits: tumor_073 trains, tumor_001 (tumour only) and tumor_004 (normal only) validate, tumor_064 tests.
The normal patches of tumor_073 and tumor_064 alternate between a slide with tumour and one without, so
that slides of both classes exist. Patches lie edge to edge: the tissue is real, its neighbourhood is not.
Metrics of this sample only show that the pipeline works on real tissue.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.cohort.sheet import COLUMNS
from wsi_pipeline.cohort.synthetic import save_pyramid, write_asap

EDGE = 256
MARGIN = 512
# Camelyon16: Radboud's slides are 0.243 um per pixel, Utrecht's (tumor_071 and later) 0.226.
MPP = {"tumor_001": 0.243, "tumor_004": 0.243, "tumor_064": 0.243, "tumor_073": 0.226}
CENTRE = {0.243: "radboud", 0.226: "utrecht"}
SPLIT = {"tumor_073": "train", "tumor_001": "validation", "tumor_004": "validation", "tumor_064": "test"}


def block(tiles: list[NDArray[np.uint8]], columns: int = 4) -> NDArray[np.uint8]:
    """Tiles in rows of `columns`; the first tiles are repeated to fill the last row."""
    rows = -(-len(tiles) // columns)
    full = [tiles[k % len(tiles)] for k in range(rows * columns)]
    return np.concatenate([np.concatenate(full[r * columns : (r + 1) * columns], axis=1) for r in range(rows)])


def assemble(
    tumor: list[NDArray[np.uint8]], normal: list[NDArray[np.uint8]]
) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int]]]:
    """A white slide with a block of each class, and the box of the tumour block as (x, y, width, height)."""
    blocks = [block(tiles) for tiles in (tumor, normal) if tiles]
    width = MARGIN + sum(b.shape[1] + MARGIN for b in blocks)
    slide = np.full((max(b.shape[0] for b in blocks) + 2 * MARGIN, width, 3), 243, np.uint8)
    x, boxes = MARGIN, []
    for part in blocks:
        height, length, _ = part.shape
        slide[MARGIN : MARGIN + height, x : x + length] = part
        boxes.append((x, MARGIN, length, height))
        x += length + MARGIN
    return slide, boxes[:1] if tumor else []


def write_real_sample(data: Path, out: Path) -> Path:
    """Write slides, annotations and the sheet; returns the path of the sheet."""
    out.mkdir(parents=True, exist_ok=True)
    patches = {
        (kind, slide): [
            np.asarray(Image.open(path).convert("RGB"))
            for path in sorted((data / "camelyon16-patches" / kind).glob(f"{slide}_*.png"))
        ]
        for kind in ("tumor", "normal")
        for slide in SPLIT
    }
    rows = []
    for source, split in SPLIT.items():
        tumor, normal = patches["tumor", source], patches["normal", source]
        parts = [("tumor", tumor, normal[::2]), ("normal", [], normal[1::2])] if tumor and normal else []
        parts = parts or [("tumor" if tumor else "normal", tumor, normal)]
        for kind, with_tumor, without in parts:
            name = f"{source}-{kind}"
            pixels, boxes = assemble(with_tumor, without)
            save_pyramid(out / f"{name}.tif", pixels, MPP[source])
            row = {"slide": name, "path": str(out / f"{name}.tif"), "split": split, "label": kind, "patient": source}
            row["centre"] = CENTRE[MPP[source]]
            if boxes:
                ((x, y, width, height),) = boxes
                ring = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
                write_asap(out / f"{name}.xml", [shapely.Polygon(ring)], [])
                row["annotation"] = str(out / f"{name}.xml")
            rows.append(row)
    sheet = out / "slides.tsv"
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return sheet


if __name__ == "__main__":
    print(write_real_sample(Path(sys.argv[1]), Path(sys.argv[2])))
