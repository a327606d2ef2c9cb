"""A web server on the loopback interface for one results folder.

All users of a machine reach its loopback interface, so each URL starts with a token that only the user who started the
server knows. Only names of existing slides and models from a URL become parts of paths. Requests with another host name
are refused, against DNS rebinding: a foreign web page could otherwise point a name of its own at this server and read
results.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from wsi_pipeline.errors import ConfigError, StoreError
from wsi_pipeline.io.layout import SLIDE_STAGES, ResultNotFoundError, SlideLayout
from wsi_pipeline.plots.colors import heatmap_palettes
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.report.slide_data import heat_geometry
from wsi_pipeline.view.results import Results, load_detections, load_heatmap
from wsi_pipeline.view.tiles import TileReader

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_HOST_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_STATIC = {
    "": ("view.html", "text/html; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
    "panels.js": ("panels.js", "text/javascript; charset=utf-8"),
    "panels.css": ("panels.css", "text/css; charset=utf-8"),
    "view.css": ("view.css", "text/css; charset=utf-8"),
}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
# Tiles never change: their URL contains the version of the store.
_CACHE_FOREVER = "private, max-age=31536000, immutable"
_TILE = r"/([^/]+)/(\d{1,2})/(\d{1,6})/(\d{1,6})"

T = TypeVar("T")


class _Handler(RequestHandler):
    """Base class: checks the host name, sets headers, runs blocking work in a thread pool."""

    # Set in `initialize`, as Tornado does not call the constructor with them.
    results: Results
    tiles: TileReader
    pool: ThreadPoolExecutor

    def initialize(self, results: Results, tiles: TileReader, pool: ThreadPoolExecutor) -> None:
        self.results = results
        self.tiles = tiles
        self.pool = pool

    def prepare(self) -> None:
        host = self.request.host.lower()
        if host.rpartition(":")[0] not in _HOST_NAMES and host not in _HOST_NAMES:
            raise HTTPError(403, reason="Host name not allowed")

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def compute_etag(self) -> None:
        return None

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Result of `work`. Missing results are answered with 404, damaged ones with 500 and the reason as JSON."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, work)
        except ResultNotFoundError as error:
            raise HTTPError(404) from error
        except StoreError as error:
            log.warning("%s", error)
            self.set_status(500)
            self.finish({"error": str(error)})
            raise _ResponseSentError from error

    def send(self, content: Any) -> None:
        """Send `content` as JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(content, allow_nan=False))

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish(f"{status_code} {self._reason}\n")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, _ResponseSentError):
            super().log_exception(typ, value, tb)


class _NotFound(_Handler):
    def prepare(self) -> None:
        super().prepare()
        if self.request.path.startswith(f"/{self.settings['token']}/"):
            raise HTTPError(404)
        raise HTTPError(403, reason="The URL lacks the token that wsi-pipeline view printed")


class _ResponseSentError(Exception):
    """Ends a request whose error response has been sent."""


class _Static(_Handler):
    def get(self, name: str) -> None:
        file, media_type = _STATIC[name]
        self.set_header("Content-Type", media_type)
        self.finish(files("wsi_pipeline.view").joinpath("static", file).read_bytes())


class _Overview(_Handler):
    async def get(self) -> None:
        model = self.get_query_argument("model", None)
        overview = await self.run_in_thread(lambda: self.results.overview(model))
        self.send({**overview, "palettes": heatmap_palettes()})


class _Slide(_Handler):
    async def get(self, slide: str) -> None:
        model = self.get_query_argument("model", None)
        self.send(await self.run_in_thread(lambda: self._description(self.results.slide_layout(slide, model))))

    def _description(self, layout: SlideLayout) -> dict[str, Any]:
        done = layout.done()
        if not done["convert"]:
            return {"name": layout.slide, "done": done, "levels": []}
        pyramid = self.tiles.pyramid(layout.pyramid(), layout.version("convert"))
        return {
            "name": layout.slide,
            "versions": {stage: layout.version(stage) for stage in SLIDE_STAGES if done[stage]},
            "done": done,
            "mpp": pyramid.mpp,
            "width": pyramid.size.width,
            "height": pyramid.size.height,
            "levels": [
                {
                    "width": level.size.width,
                    "height": level.size.height,
                    "tileWidth": level.grid.chunk.width,
                    "tileHeight": level.grid.chunk.height,
                    "scale": mpp / pyramid.mpp,
                }
                for level, mpp in zip(pyramid.levels, pyramid.mpps, strict=True)
            ],
            "heat": heat_geometry(layout.receipt("heatmap")) if done["heatmap"] else None,
            "detections": load_detections(layout),
        }


class _Heat(_Handler):
    async def get(self, slide: str) -> None:
        model = self.get_query_argument("model", None)

        def packed() -> bytes:
            grid = load_heatmap(self.results.slide_layout(slide, model))
            if grid is None:
                raise ResultNotFoundError(slide)
            return grid.packed()

        self.set_header("Content-Type", "application/octet-stream")
        self.finish(await self.run_in_thread(packed))


class _Tile(_Handler):
    async def get(self, slide: str, level: str, column: str, row: str) -> None:
        position = int(level), int(column), int(row)
        found = await self.run_in_thread(lambda: self.tile(self.results.slide_layout(slide, None), *position))
        self.set_header("Cache-Control", _CACHE_FOREVER)
        if found is None:
            self.set_status(204)
            self.finish()
            return
        media_type, content = found
        self.set_header("Content-Type", media_type)
        self.finish(content)

    def tile(self, layout: SlideLayout, level: int, column: int, row: int) -> tuple[str, bytes] | None:
        """Media type and bytes of a tile; None for an empty one, which is answered with 204."""
        return self.tiles.tile(self.pyramid(layout), level, column, row)

    def pyramid(self, layout: SlideLayout) -> Pyramid:
        return self.tiles.pyramid(layout.pyramid(), layout.version("convert"))


class _TissueTile(_Tile):
    stage = "tissue"

    def tile(self, layout: SlideLayout, level: int, column: int, row: int) -> tuple[str, bytes] | None:
        store, version = layout.slide_file(f"{self.stage}.ome.zarr"), layout.version(self.stage)
        content = self.tiles.mask_tile(self.pyramid(layout), store, version, level, column, row)
        return None if content is None else ("image/png", content)


class _TruthTile(_TissueTile):
    stage = "truth"


def make_application(results: Results, pool: ThreadPoolExecutor, token: str) -> Application:
    """The routes of the viewer: its static page, and the JSON, heatmaps and tiles that the page fetches.

    All are below the path `token`; other paths are answered with 403.
    """
    shared = {"results": results, "tiles": TileReader(), "pool": pool}
    return Application(
        [
            (rf"/{token}/(|view\.js|panels\.js|panels\.css|view\.css)", _Static, shared),
            (rf"/{token}/results", _Overview, shared),
            (rf"/{token}/slides/([^/]+)", _Slide, shared),
            (rf"/{token}/heat/([^/]+)", _Heat, shared),
            (rf"/{token}/tiles{_TILE}", _Tile, shared),
            (rf"/{token}/tissue{_TILE}", _TissueTile, shared),
            (rf"/{token}/truth{_TILE}", _TruthTile, shared),
        ],
        default_handler_class=_NotFound,
        default_handler_args=shared,
        token=token,
        log_function=lambda _: None,
    )


def serve(folder: Path, port: int, threads: int = 4) -> None:
    """Serve a results folder until Ctrl-C; `port` 0 picks a free one.

    Raises `StoreError` if the folder holds no results and `ConfigError` if the port is in use.
    """
    results = Results(folder)
    try:
        sockets = bind_sockets(port, HOST)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConfigError(f"port {port} is in use", remedy="Name another one with --port, or 0 for any") from error

    async def serve_forever() -> None:
        token = secrets.token_hex(16)
        with ThreadPoolExecutor(threads) as pool:
            server = HTTPServer(make_application(results, pool, token))
            server.add_sockets(sockets)
            url = f"http://{HOST}:{sockets[0].getsockname()[1]}/{token}/"
            print(f"{folder} at {url} (Ctrl-C to stop)", flush=True)
            await asyncio.Event().wait()

    with suppress(KeyboardInterrupt):
        asyncio.run(serve_forever())
