"""Pages of the report and of the viewer in a browser."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page

# Folder for screenshots, which CI keeps.
PICTURES = os.environ.get("WSI_PIPELINE_TEST_PICTURES")


@contextmanager
def opened(browser: Browser, url: str, picture: str) -> Iterator[Page]:
    """Open a page; assert at the end that it logged no warning or error and requested nothing from elsewhere."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    problems: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    settle(page)
    yield page
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(PICTURES) / f"{picture}.png"), full_page=True)
    page.close()
    assert problems == []
    here = url.partition("#")[0].removesuffix(".html")
    elsewhere = [one for one in requested if not one.startswith((here, "data:", "blob:"))]
    assert elsewhere == []


def until(page: Page, condition: str) -> None:
    """Wait until an expression is true. Playwright's own wait needs `eval`, which the viewer's page forbids."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def settle(page: Page) -> None:
    until(page, "Boolean(window.viewer && viewer.slide && viewer.settled)")


def until_shown(page: Page, slide: str) -> None:
    until(page, f"viewer.slide !== null && viewer.slide.name === {json.dumps(slide)}")


def matrix(page: Page, root: str) -> dict[str, int]:
    cells = page.locator(f"{root} td")
    return {cell.get_attribute("data-kind") or "": int(cell.inner_text().replace(",", "")) for cell in cells.all()}


def set_threshold(page: Page, value: float) -> None:
    page.fill('[data-control="threshold"]', repr(value))
    settle(page)


def pixels(page: Page, panel: int) -> list[int]:
    """Sums of red, green and blue over all pixels of a panel."""
    script = """panel => {
        const { width, height } = panel.canvas, copy = new OffscreenCanvas(width, height);
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(panel.canvas, 0, 0);
        const { data } = context.getImageData(0, 0, width, height);
        const found = [0, 0, 0];
        for (let k = 0; k < data.length; k += 4) for (let c = 0; c < 3; c += 1) found[c] += data[k + c];
        return found;
    }"""
    return list(page.evaluate(f"({script})(viewer.panels[{panel}])"))


def cells(page: Page, panel: int) -> np.ndarray:
    """Colours in the middle of each cell of the heatmap on a panel, (rows, columns, 3)."""
    script = """panel => {
        const { canvas, viewer: { view, slide: { heat } } } = panel, { width, height } = canvas;
        const copy = new OffscreenCanvas(width, height), context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(canvas, 0, 0);
        const { data } = context.getImageData(0, 0, width, height), found = [];
        for (let row = 0; row < heat.rows; row += 1) for (let column = 0; column < heat.columns; column += 1) {
            const x = (column * heat.stride + heat.patch / 2 - view.x) * view.scale + width / 2;
            const y = (row * heat.stride + heat.patch / 2 - view.y) * view.scale + height / 2;
            const at = 4 * (Math.round(y) * width + Math.round(x));
            found.push([...data.subarray(at, at + 3)]);
        }
        return [heat.rows, heat.columns, found];
    }"""
    rows, columns, found = page.evaluate(f"({script})(viewer.panels[{panel}])")
    return np.array(found, float).reshape(rows, columns, 3)
