"""Which pages of a TIFF file are the levels of the slide.

Formats of scanners say so themselves, and OpenSlide knows them. In any other TIFF file the slide is the largest image,
and a level is a smaller page of the same aspect ratio that shows the same. Where tags, order and sizes contradict each
other, the file is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.seeds import generator
from wsi_pipeline.slides.page_reader import PageReader
from wsi_pipeline.slides.tiff_pages import JOIN_PAGES, TAKE_PAGE, Page, PageError

# Sizes of levels are rounded up, down or to the nearest pixel, in each halving.
_SIZE_TOLERANCE_PX = 2
# An image that is not the slide is smaller: 1,280 x 431 px beside 2,220 x 2,967 is the largest that is known.
_MAX_OTHER_SHARE = 0.25
_MAX_LISTED = 4
# Windows whose mean colours are compared: half of them at random, half where a page is darkest.
_WINDOWS = 16
_WINDOW_PX, _FINER_WINDOW_PX = 32, 512
_MAX_WHOLE_PIXELS = 8_000_000
# Of 0 to 255. Means of a window differ by the resampling and by half a pixel at its edges.
_MEAN_TOLERANCE = 24
_MAX_DIFFERENT_SHARE = 0.25


def slide_levels(pages: list[Page], open_page: Callable[[Page], PageReader]) -> list[PageReader]:
    """The levels of the slide, finest first. Raises `PageError` where that is not certain."""
    images = [page for page in pages if page.kind == "image"]
    if not images:
        kinds = ", ".join(f"{page} is a {page.kind}" for page in pages)
        raise PageError(f"no page is the slide: {kinds}", TAKE_PAGE)
    base = max(images, key=lambda page: page.pixels)
    _check_single(base, images)
    levels = [open_page(base)]
    others = list[Page]()
    for page in sorted(images, key=lambda page: -page.pixels):
        if page is base or page.size == levels[-1].size:
            continue
        reader = _reader(page, open_page) if page.tiled == base.tiled and _same_aspect(page.size, base.size) else None
        if reader is not None and show_the_same(levels[-1], reader):
            levels.append(reader)
            continue
        if not page.reduced:
            others.append(page)
    _check_others(base, others)
    return levels


def _reader(page: Page, open_page: Callable[[Page], PageReader]) -> PageReader | None:
    try:
        return open_page(page)
    except PageError:
        return None


def _check_single(base: Page, images: list[Page]) -> None:
    same = [page for page in images if page.size == base.size]
    if base.planes > 1:
        raise PageError(f"{base} is one of {base.planes} channels, focal planes or times", JOIN_PAGES)
    if len(same) > 1:
        problem = f"{_list(same)} have the same size: channels, focal planes or times, not one RGB image"
        raise PageError(problem, JOIN_PAGES)


def _check_others(base: Page, others: list[Page]) -> None:
    """Refuse another image that comes first, or that is about as large, as it could be the slide too."""
    rivals = [
        page
        for page in others
        if base.reduced or page.index < base.index or page.pixels > _MAX_OTHER_SHARE * base.pixels
    ]
    if rivals:
        raise PageError(f"{_list([*rivals, base])} show different images, and each may be the slide", TAKE_PAGE)


def _list(pages: Iterable[Page]) -> str:
    texts = [str(page) for page in sorted(pages, key=lambda page: page.index)]
    if len(texts) > _MAX_LISTED:
        texts = [*texts[: _MAX_LISTED - 1], f"{len(texts) - _MAX_LISTED + 1} more pages"]
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def _same_aspect(size: Size, base: Size) -> bool:
    across = abs(size.width - size.height * base.width / base.height)
    down = abs(size.height - size.width * base.height / base.width)
    return min(across, down) <= _SIZE_TOLERANCE_PX


def show_the_same(finer: PageReader, coarser: PageReader) -> bool:
    """Whether two pages show the same image at two scales: whether the mean colours of most windows agree.

    Unreadable windows are left out; a page without a readable window shows nothing.
    """
    different = list[bool]()
    for window in _windows(finer, coarser):
        ratio_x, ratio_y = finer.size.width / coarser.size.width, finer.size.height / coarser.size.height
        x, y = round(window.x * ratio_x), round(window.y * ratio_y)
        box = Box(x, y, round(window.right * ratio_x) - x, round(window.bottom * ratio_y) - y).clipped(finer.size)
        try:
            means = [reader.read(part).mean(axis=(0, 1)) for reader, part in ((coarser, window), (finer, box))]
        except ValueError:
            continue
        different.append(bool(np.abs(means[0] - means[1]).max() > _MEAN_TOLERANCE))
    return bool(different) and sum(different) <= _MAX_DIFFERENT_SHARE * len(different)


def _windows(finer: PageReader, coarser: PageReader) -> list[Box]:
    size = coarser.size
    edge = max(1, min(_WINDOW_PX, size.width, size.height, _FINER_WINDOW_PX * size.width // finer.size.width))
    columns, rows = size.width // edge, size.height // edge
    order = generator(0, "windows", coarser.page.index).permutation(columns * rows)
    picked = order[:_WINDOWS].tolist()
    darkest = _darkest(coarser, edge, columns, rows)
    if darkest is not None:
        picked = [*picked[: _WINDOWS // 2], *darkest]
    return [Box(index % columns * edge, index // columns * edge, edge, edge) for index in picked]


def _darkest(reader: PageReader, edge: int, columns: int, rows: int) -> list[int] | None:
    """The darkest windows, where a label has its text and a slide its tissue; None for a large or unreadable page."""
    if reader.page.pixels > _MAX_WHOLE_PIXELS:
        return None
    try:
        pixels = reader.read(Box(0, 0, columns * edge, rows * edge))
    except ValueError:
        return None
    means: NDArray[np.float64] = pixels.reshape(rows, edge, columns, edge * 3).mean(axis=(1, 3))
    return [int(index) for index in means.ravel().argsort(kind="stable")[: _WINDOWS // 2]]
