"""How fast `wsi-pipeline view` answers, and how much memory it takes.

    python benchmarks/view.py SLIDE [--slides 100] [--tiles 2000] [--chromium PROGRAM]

SLIDE, best a large one, is converted once and shown as so many slides. One client asks for random tiles of all of them,
then two do; then the server's memory is read. With Chromium: the time from opening the page to the picture of
the whole slide being there. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import http.client
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from wsi_pipeline.config import ConvertRun
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--slides", type=int, default=100)
    parser.add_argument("--tiles", type=int, default=2000)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        first = Path(folder) / "slides" / "slide-000"
        store = first / "pyramid.ome.zarr"
        outputs = convert.Outputs(store, first / "pyramid.json")
        convert.run("slide-000", convert.Inputs(arguments.slide), outputs, ConvertRun(), mpp=0.25, threads=2)
        for number in range(1, arguments.slides):
            other = first.with_name(f"slide-{number:03}")
            other.mkdir()
            for name in ("pyramid.ome.zarr", "pyramid.json"):
                (other / name).symlink_to((first / name).resolve())
        pyramid = Pyramid(store)
        kinds = {type(level.codec).__name__ for level in pyramid.levels}
        paths = drawn(pyramid, arguments.slides, arguments.tiles)
        with subprocess.Popen(  # noqa: S603
            [str(Path(sys.executable).with_name("wsi-pipeline")), "view", folder, "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            alone = times(address, paths)
            began = time.perf_counter()
            clients = [threading.Thread(target=times, args=(address, paths[k::2])) for k in range(2)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            together = len(paths) / (time.perf_counter() - began)
            memory = psutil.Process(server.pid).memory_info().rss / 2**20
            seen = first_picture(address, arguments.chromium) if arguments.chromium else None
            server.terminate()
    print(
        f"{arguments.slide.name}, {pyramid.size.width} x {pyramid.size.height} px, {', '.join(sorted(kinds))} tiles; ",
        end="",
    )
    print(f"{os.cpu_count()} cores, {platform.machine()}\n\n| what | figure |\n|---|---|")
    print(f"| a tile, one client, median | {np.median(alone) * 1e3:.1f} ms |")
    print(f"| the 99th percentile | {np.percentile(alone, 99) * 1e3:.1f} ms |")
    print(f"| two clients | {together:.0f} tiles/s |")
    print(f"| memory of the server, {arguments.slides} slides open | {memory:.0f} MiB |")
    if seen is not None:
        print(f"| from opening the page to the whole slide (Chromium) | {seen:.2f} s |")


def drawn(pyramid: Pyramid, slides: int, count: int) -> list[str]:
    """Addresses of random tiles, of the finest level as often as of all others."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        level = 0 if number % 2 else int(rng.integers(len(pyramid.levels)))
        grid = pyramid.levels[level].grid
        found.append(
            f"/tiles/slide-{number % slides:03}/{level}/{rng.integers(grid.columns)}/{rng.integers(grid.rows)}"
        )
    return found


def times(address: str, paths: list[str]) -> list[float]:
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port)
    found = []
    for path in paths:
        began = time.perf_counter()
        connection.request("GET", where.path.rstrip("/") + path)
        answer = connection.getresponse()
        answer.read()
        if answer.status not in (200, 204):
            sys.exit(f"{path}: {answer.status}")
        found.append(time.perf_counter() - began)
    connection.close()
    return found


def first_picture(address: str, chromium: str) -> float:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto("about:blank")
        began = time.perf_counter()
        page.goto(address)
        while not page.evaluate("Boolean(window.viewer && viewer.slide && viewer.settled)"):
            page.wait_for_timeout(5)
        took = time.perf_counter() - began
        browser.close()
    return took


if __name__ == "__main__":
    main()
