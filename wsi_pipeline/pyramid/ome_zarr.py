"""OME-Zarr 0.5 stores: metadata, image pyramids (c, y, x) and single-level images (y, x).

Specification: https://ngff.openmicroscopy.org/0.5/. World coordinates are micrometres with the
origin at the centre of the slide's first level-0 pixel. An image with pixels `r` times larger is
therefore translated by (r - 1) / 2 level-0 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.pyramid.shards import ChunkGrid

Attributes = dict[str, Any]
# Fill value: absent chunks read as white background.
BACKGROUND = 255
# Edge length of the shards of a single-level image.
IMAGE_SHARD_PX = 4096
_RGB = (("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF"))


def open_group(path: Path) -> zarr.Group:
    """Open a store for reading. Raises `StoreError` where it is missing or not a Zarr store."""
    try:
        return zarr.open_group(path, mode="r")
    except (FileNotFoundError, OSError, ValueError) as error:
        raise StoreError(f"{path}: not a Zarr store ({error})", remedy="Run again the stage that writes it") from error


def open_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """The array `name` of a group. Raises `StoreError` where it is missing."""
    try:
        return cast("zarr.Array[Any]", group[name])
    except KeyError as error:
        raise StoreError(
            f"{group.store_path}: no array {name}", remedy="Run again the stage that writes the store"
        ) from error


def create_level(folder: Path, grid: ChunkGrid, codecs: Mapping[str, Any]) -> None:
    """Write the metadata of a pyramid level, (c, y, x) uint8 with the fill value `BACKGROUND`."""
    zarr.create_array(
        folder,
        shape=(3, grid.size.height, grid.size.width),
        chunks=(3, grid.chunk.height, grid.chunk.width),
        shards=(3, grid.shard.height, grid.shard.width),
        dtype="uint8",
        fill_value=BACKGROUND,
        dimension_names=["c", "y", "x"],
        **codecs,
    )


def pyramid_attributes(name: str, scales: Sequence[tuple[float, float]], first: int = 0) -> Attributes:
    """Group attributes of an RGB pyramid; `scales` are (y, x) in um per pixel, level 0 first.

    A store that holds only the levels from `first` on numbers them from 0.
    """
    datasets = [
        _dataset(str(level), [1.0, *scale], [0.0, *((s - own) / 2 for s, own in zip(scale, scales[0], strict=True))])
        for level, scale in enumerate(scales[first:])
    ]
    channels = [
        {"label": label, "color": color, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
        for label, color in _RGB
    ]
    return _ome(name, ["c", "y", "x"], datasets, {"omero": {"channels": channels, "rdefs": {"model": "color"}}})


def _dataset(path: str, scale: list[float], translation: list[float]) -> Attributes:
    return {
        "path": path,
        "coordinateTransformations": [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": translation},
        ],
    }


def _ome(name: str, axes: list[str], datasets: list[Attributes], extra: Attributes) -> Attributes:
    described = [
        {"name": a, "type": "channel"} if a == "c" else {"name": a, "type": "space", "unit": "micrometer"} for a in axes
    ]
    multiscale = {"name": name, "axes": described, "datasets": datasets}
    return {"ome": {"version": "0.5", "multiscales": [multiscale], **extra}}


@dataclass(frozen=True, slots=True)
class Image:
    """A single-level image (y, x) registered to a slide.

    A pixel is `mpp` um wide. The centre of pixel (0, 0) lies `first_centre_um` right of and below the
    slide's top left corner.
    """

    data: NDArray[Any]
    mpp: float
    first_centre_um: float

    @classmethod
    def from_corner(cls, data: NDArray[Any], mpp: float) -> Image:
        """An image whose first pixel starts at the slide's top left corner."""
        return cls(data, mpp, mpp / 2)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The pixels of a stored image, (h, w), of which rows are read when they are taken, `image[first:last]`.

    Raises `StoreError` for damaged files.
    """

    path: Path
    array: zarr.Array[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        try:
            return np.asarray(self.array[rows])
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError(f"{self.path}: damaged ({error})", remedy="Run again the stage that writes it") from error


@dataclass(frozen=True, slots=True)
class StoredImage:
    """As `Image`, with the pixels in a store."""

    data: StoredRows
    mpp: float
    first_centre_um: float


@dataclass(frozen=True, slots=True)
class LabelValue:
    """A value of a label image with its name and colour (red, green, blue, alpha; 0 to 255)."""

    value: int
    name: str
    rgba: tuple[int, int, int, int]


def write_image(
    path: Path,
    image: Image,
    *,
    name: str,
    slide_mpp: float,
    labels: Sequence[LabelValue] = (),
    fill: float = 0,
    more: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write an image atomically as OME-Zarr, as a label image with `labels`; `slide_mpp` is that of level 0.

    `more` are arrays of the same shape, by name, beside the image; they are no part of its multiscale.
    """
    with new_image(path, image, name=name, slide_mpp=slide_mpp, labels=labels, fill=fill, more=more) as array:
        array[...] = image.data


@contextmanager
def new_image(
    path: Path,
    image: Image,
    *,
    name: str,
    slide_mpp: float,
    labels: Sequence[LabelValue] = (),
    fill: float = 0,
    more: Mapping[str, NDArray[Any]] | None = None,
) -> Iterator[zarr.Array[Any]]:
    """As `write_image`, but the caller writes the pixels; of `image.data` only shape and dtype are used.

    Rows are written `IMAGE_SHARD_PX` at a time: a shard that is written in parts is read and compressed again.
    """
    extra: Attributes = {}
    if labels:
        extra["image-label"] = {
            "version": "0.5",
            "colors": [{"label-value": v.value, "rgba": list(v.rgba)} for v in labels],
            "properties": [{"label-value": v.value, "name": v.name} for v in labels],
        }
    offset = image.first_centre_um - slide_mpp / 2
    attributes = _ome(name, ["y", "x"], [_dataset("0", [image.mpp] * 2, [offset] * 2)], extra)
    with atomic_output(path) as partial:
        group = zarr.create_group(partial, attributes=attributes)
        for key, data in (more or {}).items():
            _create_image_array(group, key, data, fill)[...] = data
        yield _create_image_array(group, "0", image.data, fill)


def _create_image_array(group: zarr.Group, name: str, like: NDArray[Any], fill: float) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=like.shape,
        chunks=(512, 512),
        shards=(IMAGE_SHARD_PX, IMAGE_SHARD_PX),
        dtype=like.dtype,
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=like.itemsize),
        fill_value=fill,
        dimension_names=["y", "x"],
        # Write every shard, so that `read_image` can tell a lost file from the fill value.
        config={"write_empty_chunks": True},
    )


def read_image(path: Path, slide_mpp: float, name: str = "0") -> Image:
    """Read an image, or the array `name` beside it; `slide_mpp` is that of level 0.

    Raises `StoreError` for damaged or missing files.
    """
    stored = open_image(path, slide_mpp, name)
    return Image(stored.data[:], stored.mpp, stored.first_centre_um)


def open_image(path: Path, slide_mpp: float, name: str = "0") -> StoredImage:
    """As `read_image`, without reading the pixels. Raises `StoreError` for missing files."""
    group = open_group(path)
    scale, translation = transformations(group.attrs, path)[0]
    array = open_array(group, name)
    shards = zip(array.shape, array.shards or array.chunks, strict=True)
    places = list(product(*(range(-(-edge // shard)) for edge, shard in shards)))
    missing = [place for place in places if not path.joinpath(name, "c", *map(str, place)).is_file()]
    if missing:
        raise StoreError(
            f"{path}: {len(missing)} of {len(places)} shard files are missing",
            remedy="Run again the stage that writes it",
        )
    return StoredImage(StoredRows(path, array), mpp=scale[-1], first_centre_um=translation[-1] + slide_mpp / 2)


def transformations(attributes: Mapping[str, Any], path: Path) -> list[tuple[list[float], list[float]]]:
    """Scale (um per pixel) and translation (um) of each level, in the order of the axes. Raises `StoreError`."""
    try:
        ome = attributes["ome"]
        return [
            (d["coordinateTransformations"][0]["scale"], d["coordinateTransformations"][1]["translation"])
            for d in ome["multiscales"][0]["datasets"]
        ]
    except (KeyError, IndexError, TypeError) as error:
        raise StoreError(f"{path}: no OME-Zarr 0.5 metadata", remedy="Run again the stage that writes it") from error
