"""Open a pyramid with independent readers and compare a box of pixels.

python open_store.py STORE PIXELS.npy X Y
"""

import sys

import ngff_zarr
import numpy as np
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import Image

store, pixels, x, y = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
box = (slice(None), slice(y, y + pixels.shape[0]), slice(x, x + pixels.shape[1]))


def check(reader: str, level_0: object) -> None:
    read = np.asarray(level_0[box]).transpose(1, 2, 0)
    assert np.array_equal(read, pixels), f"{reader} reads other pixels"
    print(f"{reader}: the same pixels")


group = zarr.open_group(store, mode="r")
levels = len(Image.from_zarr(group).ome_attributes.multiscales[0].datasets)
print(f"ome-zarr-models: valid, {levels} levels")
check("zarr with imagecodecs-zarr", group["0"])
(node, *_) = Reader(parse_url(store, mode="r"))()
assert len(node.data) == levels
assert node.metadata["channel_names"] == ["Red", "Green", "Blue"]
check("ome-zarr", node.data[0])
images = ngff_zarr.from_ngff_zarr(store).images
assert len(images) == levels
assert images[0].axes_units == {"c": None, "y": "micrometer", "x": "micrometer"}
check("ngff-zarr", images[0].data)
