"""Torchvision's published ImageNet weights of Inception-v3: download and check."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from wsi_pipeline.errors import ModelError
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.io.digests import digest_file

IMAGENET_URL = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
IMAGENET_SHA256_PREFIX = "0cc3c7bd"
OFFLINE = (
    "Download inception_v3_google-0cc3c7bd.pth (torchvision's ImageNet weights) on a machine with internet access "
    "and set training.weights_file to it, or set training.start to random"
)


def check_imagenet(path: Path) -> None:
    """Raise `ModelError` unless the file is the published one, by the SHA-256 prefix in its name."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file", remedy=OFFLINE)
    found = digest_file(path)
    if not found.startswith(IMAGENET_SHA256_PREFIX):
        raise ModelError(
            f"{path}: SHA-256 is {found[:16]}…, but that of the published weights begins with {IMAGENET_SHA256_PREFIX}",
            remedy=OFFLINE,
        )


def download_imagenet(output: Path, url: str | None = None) -> None:
    """Download to `output`, atomically. Raises `ModelError` without network or on another SHA-256."""
    source = url or IMAGENET_URL
    if not source.startswith(("https://", "http://127.0.0.1")):
        raise ModelError(f"{source}: not an https address", remedy=OFFLINE)
    with atomic_output(output) as partial:
        try:
            with urlopen(source, timeout=60) as response, partial.open("wb") as file:  # noqa: S310 (checked above)
                shutil.copyfileobj(response, file)
        except (URLError, OSError) as error:
            raise ModelError(f"{source} cannot be downloaded ({error})", remedy=OFFLINE) from error
        check_imagenet(partial)
