"""Getting torchvision's ImageNet weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from wsi_pipeline.errors import ModelError
from wsi_pipeline.files import publish
from wsi_pipeline.model.imagenet import IMAGENET_URL, OFFLINE, check_imagenet


def download_imagenet(output: Path, url: str | None = None) -> None:
    """Download to `output`, atomically; `ModelError` without network or with another SHA-256."""
    source = url or IMAGENET_URL
    if not source.startswith(("https://", "http://127.0.0.1")):
        raise ModelError(f"{source}: not an https address", remedy=OFFLINE)
    with publish(output) as partial:
        try:
            with urlopen(source, timeout=60) as response, partial.open("wb") as file:  # noqa: S310 (checked above)
                shutil.copyfileobj(response, file)
        except (URLError, OSError) as error:
            raise ModelError(f"{source} cannot be downloaded ({error})", remedy=OFFLINE) from error
        check_imagenet(partial)
