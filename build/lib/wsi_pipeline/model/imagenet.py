"""Torchvision's published ImageNet weights of Inception-v3, as a file."""

from __future__ import annotations

from pathlib import Path

from wsi_pipeline.errors import ModelError
from wsi_pipeline.files import digest_file

IMAGENET_URL = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
IMAGENET_SHA256_PREFIX = "0cc3c7bd"
OFFLINE = (
    "Download inception_v3_google-0cc3c7bd.pth (torchvision's ImageNet weights) on a machine with internet access "
    "and set training.weights_file to it, or set training.start to random"
)


def check_imagenet(path: Path) -> None:
    """`ModelError` unless the file is the published one, whose name begins its SHA-256."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file", remedy=OFFLINE)
    found = digest_file(path)
    if not found.startswith(IMAGENET_SHA256_PREFIX):
        raise ModelError(
            f"{path}: SHA-256 is {found[:16]}…, but the published weights begin with {IMAGENET_SHA256_PREFIX}",
            remedy=OFFLINE,
        )
