"""Small TIFF files over the cross product of layout properties, drawn from a seed, with the pixels that they hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import tifffile

from helpers.tiff import drop_tile

Image = np.ndarray[Any, np.dtype[np.uint8]]

# The first value of each property is the usual one, and drawn in most files.
PROPERTIES: dict[str, tuple[Any, ...]] = {
    "codec": ("jpeg", "jpeg", "none", "lzw", "deflate", "zstd", "webp", "packbits", "jpeg2000"),
    "segment": ((64, 64), (128, 64), (240, 240), "strips of 16", "strips of 1", "one strip"),
    "colors": (
        "rgb",
        "grey",
        "white is zero",
        "palette",
        "alpha",
        "associated alpha",
        "unknown alpha",
        "cmyk",
        "rgb jpeg",
    ),
    "planar": ("contig", "separate"),
    "bits": (8, 16, "12 of 16", "float"),
    "orientation": (1, 2, 3, 4, 5, 6, 7, 8),
    "predictor": (False, True),
    "byteorder": ("<", ">"),
    "bigtiff": (False, True),
    "subsampling": ((1, 1), (2, 2), (2, 1)),
    "tables": ("each tile", "shared"),
    "padding": (0, 3, 512),
    "missing_tiles": (False, True),
    "levels": (2, 1, 0),
    "level_type": ("reduced", "unmarked", "SubIFD"),
    "factor": (2.0, 4.0, 2.37),
    "order": ("finest first", "coarsest first"),
    "other": ("none", "reduced label", "unmarked label", "named label", "Aperio macro", "second scene"),
    "other_place": ("last", "first"),
    "other_segment": ("strips", "tiles"),
    "other_aspect": ("own", "slide's"),
    "stack": ("none", "channels", "channels in OME", "channels in ImageJ", "focal planes in OME"),
    "scale": ("cm", "inch", "OME-XML", "none"),
}
USUAL_SHARE = 0.8
MPP = 0.5
# Of the first page, which has at least 2 x 2 tiles.
_MISSING = (1, 3)
_LOSSY = ("jpeg", "webp", "jpeg2000")


@dataclass
class Layout:
    """Values of `PROPERTIES`; the file as written is described by `levels_of`."""

    seed: int
    values: dict[str, Any]
    size: tuple[int, int]
    # (width, height) to the RGB pixels that the file holds, of each page of the slide.
    pixels: dict[tuple[int, int], Image] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __str__(self) -> str:
        unusual = {name: value for name, value in self.values.items() if value != PROPERTIES[name][0]}
        return f"seed {self.seed}: {self.size[0]} x {self.size[1]} px, {unusual}"

    @property
    def is_legitimate(self) -> bool:
        """Whether the file has to be read: one upright image of 8 bits, with a scale, that only one page can be."""
        return (
            self.bits == 8
            and self.orientation == 1
            and self.stack == "none"
            and self.scale != "none"
            and self.colors not in ("cmyk", "unknown alpha")
            and (self.other != "second scene")
            and (self.other != "unmarked label" or self.other_place == "last")
        )


assert {f.name for f in fields(Layout)}.isdisjoint(PROPERTIES)


def draw(seed: int) -> Layout:
    """The layout of a seed; combinations that TIFF does not have are drawn again."""
    rng = np.random.default_rng(seed)
    while True:
        values = {
            name: choices[0] if rng.random() < USUAL_SHARE else choices[int(rng.integers(len(choices)))]
            for name, choices in PROPERTIES.items()
        }
        values["codec"] = PROPERTIES["codec"][int(rng.integers(len(PROPERTIES["codec"])))]
        layout = Layout(seed, values, (int(rng.integers(260, 420)), int(rng.integers(260, 420))))
        if _is_possible(layout):
            return layout


def _is_possible(layout: Layout) -> bool:
    own_streams = layout.tables == "shared" or layout.padding
    tiled = not isinstance(layout.segment, str)
    plain = layout.bits == 8 and layout.colors == "rgb" and layout.planar == "contig"
    return all(
        (
            layout.codec != "jpeg" or (layout.bits == 8 and layout.planar == "contig"),
            layout.codec != "jpeg" or layout.colors in ("rgb", "grey", "rgb jpeg"),
            layout.codec != "jpeg" or tiled or layout.segment != "strips of 1",
            layout.colors != "rgb jpeg" or layout.codec == "jpeg",
            layout.codec not in ("webp", "jpeg2000") or plain,
            layout.codec != "webp" or layout.segment != "strips of 1",
            layout.codec != "jpeg2000" or tiled,
            not own_streams or (layout.codec == "jpeg" and tiled and layout.colors == "rgb"),
            layout.subsampling == (1, 1) or own_streams,
            not layout.predictor or layout.codec in ("lzw", "deflate", "zstd"),
            not layout.predictor or layout.colors != "palette",
            layout.planar == "contig" or layout.colors == "rgb",
            layout.colors != "palette" or layout.bits == 8,
            layout.bits != "float" or layout.colors in ("rgb", "grey"),
            not layout.missing_tiles or (tiled and layout.planar == "contig" and layout.order == "finest first"),
            layout.stack == "none" or (layout.colors == "rgb" and layout.planar == "contig" and layout.codec != "jpeg"),
            layout.stack == "none" or (layout.codec in ("none", "deflate", "lzw", "zstd") and not layout.missing_tiles),
            layout.stack != "channels in ImageJ" or (layout.codec == "none" and not layout.bigtiff),
            layout.stack != "channels in ImageJ" or (layout.bits in (8, 16) and not tiled and not layout.predictor),
            (layout.scale != "OME-XML" and "OME" not in layout.stack) or layout.other == "none",
            layout.scale != "OME-XML" or layout.stack == "none",
            layout.level_type != "SubIFD" or layout.order == "finest first",
        )
    )


def write(layout: Layout, path: Path) -> None:
    """Write the file, and note the pixels of the slide's pages."""
    rng = np.random.default_rng((layout.seed, 1))
    slide = _picture(rng, layout.size)
    sizes = [layout.size]
    for _ in range(layout.levels if layout.stack == "none" else 0):
        sizes.append((round(sizes[-1][0] / layout.factor), round(sizes[-1][1] / layout.factor)))
    images = [np.asarray(PIL.Image.fromarray(slide).resize(size, PIL.Image.Resampling.BOX)) for size in sizes]
    if layout.order == "coarsest first":
        images.reverse()
    other = _other(rng, layout)
    sub = layout.level_type == "SubIFD"
    with tifffile.TiffWriter(path, byteorder=layout.byteorder, bigtiff=layout.bigtiff, **_flavour(layout)) as tiff:
        if other is not None and layout.other_place == "first":
            tiff.write(other, **_other_arguments(layout))
        for number, image in enumerate(images):
            is_base = image.shape == slide.shape
            subfiletype = 0 if is_base or layout.level_type == "unmarked" else 1
            more = {"subifds": len(images) - 1} if sub and number == 0 else {}
            _write_page(tiff, layout, image, is_base, subfiletype=subfiletype, **more)
        if other is not None and layout.other_place == "last":
            tiff.write(other, **_other_arguments(layout))
    _read_back(layout, path, images, has_other_first=other is not None and layout.other_place == "first", sub=sub)


def _picture(rng: np.random.Generator, size: tuple[int, int]) -> Image:
    """Coloured blobs on glass with some noise: different at every place."""
    coarse = rng.integers(60, 230, (9, 7, 3)).astype(np.uint8)
    coarse[rng.random((9, 7)) < 0.3] = 243
    smooth = np.asarray(PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC))
    return np.clip(smooth, 6, 249) + rng.integers(-6, 7, smooth.shape, np.int8).astype(np.uint8)


def _other(rng: np.random.Generator, layout: Layout) -> Image | None:
    """A label: dark lines on white; or a second scene about as large as the slide."""
    if layout.other == "none":
        return None
    width, height = layout.size
    if layout.other == "second scene":
        return _picture(rng, (width - 7, height - 40))
    size = (width // 2, height // 2) if layout.other_aspect == "slide's" else (131, 96)
    label = np.full((size[1], size[0], 3), 255, np.uint8)
    label[10::12, 10:-10] = 15
    label[11::12, 10:-10] = 15
    return label


def _other_arguments(layout: Layout) -> dict[str, Any]:
    kind = {"reduced label": 1, "Aperio macro": 9}.get(layout.other, 0)
    segment = {"tile": (64, 64)} if layout.other_segment == "tiles" else {"rowsperstrip": 16}
    description = "label 131x96" if layout.other == "named label" else None
    return {
        "photometric": "rgb",
        "compression": "lzw",
        "subfiletype": kind,
        "metadata": None,
        "description": description,
        **_scale(layout),
        **segment,
    }


def _flavour(layout: Layout) -> dict[str, Any]:
    if layout.stack == "channels in ImageJ":
        return {"imagej": True}
    return {"ome": True} if layout.scale == "OME-XML" or "OME" in layout.stack else {"ome": False}


def _scale(layout: Layout) -> dict[str, Any]:
    if layout.scale == "cm":
        return {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": 3}
    if layout.scale == "inch":
        return {"resolution": (25400 / MPP, 25400 / MPP), "resolutionunit": 2}
    return {}


def _metadata(layout: Layout, is_base: bool) -> dict[str, Any] | None:
    if layout.stack == "channels in ImageJ":
        return {"axes": "CYX"}
    if layout.stack == "channels in OME":
        return {"axes": "CYX"}
    if layout.stack == "focal planes in OME":
        return {"axes": "ZYXS"}
    if layout.scale == "OME-XML" and is_base:
        return {
            "PhysicalSizeX": MPP,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 1000 * MPP,
            "PhysicalSizeYUnit": "nm",
        }
    return None


def _write_page(tiff: tifffile.TiffWriter, layout: Layout, image: Image, is_base: bool, **more: Any) -> None:
    array, arguments = _encoded(layout, image)
    arguments |= {"metadata": _metadata(layout, is_base), **_scale(layout), **more}
    if layout.orientation != 1:
        arguments["extratags"] = [*arguments.get("extratags", ()), (274, 3, 1, layout.orientation, True)]
    if layout.stack == "channels":
        for channel in np.moveaxis(array, 2, 0):
            tiff.write(channel, **{**arguments, "photometric": "minisblack", "planarconfig": None})
        return
    if layout.stack.startswith("channels in"):
        array = np.ascontiguousarray(np.moveaxis(array, 2, 0))
        arguments |= {"photometric": "minisblack", "planarconfig": None}
    elif layout.stack == "focal planes in OME":
        array = np.stack([array, array[::-1], array[:, ::-1]])
    tiff.write(array, **arguments)


def _encoded(layout: Layout, image: Image) -> tuple[Any, dict[str, Any]]:
    """What `TiffWriter.write` takes: the samples, or encoded tiles, and its arguments."""
    arguments: dict[str, Any] = {"compression": None if layout.codec == "none" else layout.codec, "maxworkers": 1}
    if layout.codec == "jpeg":
        arguments["compressionargs"] = {"level": 90, "outcolorspace": "rgb" if layout.colors == "rgb jpeg" else "ycbcr"}
        if layout.colors == "grey":
            arguments["compressionargs"] = {"level": 90}
    if isinstance(layout.segment, str):
        rows = {"strips of 16": 16, "strips of 1": 1, "one strip": image.shape[0]}[layout.segment]
        arguments["rowsperstrip"] = rows
    else:
        arguments["tile"] = layout.segment
    if layout.predictor:
        arguments["predictor"] = True
    if layout.tables == "shared" or layout.padding:
        arguments |= {"shape": image.shape, "dtype": "uint8", "photometric": "ycbcr", "subsampling": layout.subsampling}
        del arguments["compressionargs"]
        streams = list(_streams(layout, image))
        if layout.tables == "shared":
            tables = _split(streams[0])[0]
            arguments["extratags"] = [(347, 7, len(tables), tables, True)]
            streams = [_split(stream)[1] for stream in streams]
        return iter([stream + bytes(layout.padding) for stream in streams]), arguments
    samples, colors = _samples(layout, image)
    if layout.planar == "separate":
        colors["planarconfig"] = "separate"
        samples = np.ascontiguousarray(np.moveaxis(samples, 2, 0))
    elif samples.ndim == 3:
        colors["planarconfig"] = "contig"
    return samples, arguments | colors


def _samples(layout: Layout, image: Image) -> tuple[Any, dict[str, Any]]:
    grey = image[..., 1]
    if layout.colors == "palette":
        colormap = np.random.default_rng((layout.seed, 2)).integers(0, 65536, (3, 256), dtype=np.uint16)
        return grey, {"photometric": "palette", "colormap": colormap}
    alpha = np.repeat(grey[:1], len(grey), axis=0)
    rgba = np.dstack([image, alpha])
    samples, colors = {
        "grey": (grey, {"photometric": "minisblack"}),
        "white is zero": (255 - grey, {"photometric": "miniswhite"}),
        "alpha": (rgba, {"photometric": "rgb", "extrasamples": [2]}),
        "associated alpha": (
            np.dstack([np.minimum(image, alpha[..., None]), alpha]),
            {"photometric": "rgb", "extrasamples": [1]},
        ),
        "unknown alpha": (rgba, {"photometric": "rgb", "extrasamples": [0]}),
        "cmyk": (rgba, {"photometric": "separated"}),
    }.get(layout.colors, (image, {"photometric": "rgb"}))
    wide = {16: np.uint16(257), "12 of 16": np.uint16(16), "float": np.float32(1 / 255)}.get(layout.bits)
    return (samples if wide is None else samples * wide), colors


def _streams(layout: Layout, image: Image) -> Iterator[bytes]:
    height, width = layout.segment
    for y in range(0, image.shape[0], height):
        for x in range(0, image.shape[1], width):
            part = image[y : y + height, x : x + width]
            whole = np.pad(part, ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0)), mode="edge")
            subsampling = "".join(
                map(
                    str,
                    (4, 4 // layout.subsampling[0], 0 if layout.subsampling[1] == 2 else 4 // layout.subsampling[0]),
                )
            )
            yield bytes(imagecodecs.jpeg8_encode(whole, 90, subsampling=subsampling))


def _split(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG stream as its tables (DQT, DHT) and the abbreviated stream without them (ITU-T T.81, annex B.5)."""
    tables, rest, at = [b"\xff\xd8"], [b"\xff\xd8"], 2
    while stream[at + 1] != 0xDA:
        stop = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        (tables if stream[at + 1] in (0xDB, 0xC4) else rest).append(stream[at:stop])
        at = stop
    return b"".join([*tables, b"\xff\xd9"]), b"".join([*rest, stream[at:]])


def _read_back(layout: Layout, path: Path, images: list[Image], *, has_other_first: bool, sub: bool) -> None:
    """Note the pixels of the slide's pages: as they were written, or as tifffile decodes them where that is lossy."""
    if layout.missing_tiles:
        for index in _MISSING:
            drop_tile(path, int(has_other_first), index)
    with tifffile.TiffFile(path) as tiff:
        for number, image in enumerate(images):
            height, width, _ = image.shape
            first: Any = tiff.pages[int(has_other_first)]
            page = first if not sub or not number else first.pages[number - 1]
            page = tiff.pages[number + int(has_other_first)] if not sub and layout.stack == "none" else page
            rgb = _rgb(layout, image, page)
            if layout.missing_tiles and number == 0:
                tile_height, tile_width = layout.segment
                for index in _MISSING:
                    row, column = divmod(index, -(-width // tile_width))
                    rgb[row * tile_height :, column * tile_width :][:tile_height, :tile_width] = 255
            layout.pixels[(width, height)] = rgb


def _rgb(layout: Layout, image: Image, page: tifffile.TiffPage) -> Image:
    """The page as RGB on white, from the picture; independent of the package."""
    if layout.codec in _LOSSY:
        decoded = page.asarray()
        return np.dstack([decoded] * 3) if decoded.ndim == 2 else decoded.copy()
    if layout.colors in ("grey", "white is zero"):
        return np.dstack([image[..., 1]] * 3)
    if layout.colors == "palette":
        return (_samples(layout, image)[1]["colormap"] // 256).astype(np.uint8).T[image[..., 1]]
    if layout.colors in ("alpha", "associated alpha"):
        samples = _samples(layout, image)[0].astype(float)
        alpha = samples[..., 3:] / 255
        color = samples[..., :3] * alpha if layout.colors == "alpha" else samples[..., :3]
        return np.floor(color + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    return image.copy()
