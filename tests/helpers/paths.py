"""Where the repository and the real slides are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("WSI_PIPELINE_TEST_DATA", ROOT.parent / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not (DATA / "slides").is_dir(),
    reason=f"no real slides at {DATA}; set WSI_PIPELINE_TEST_DATA",
)
