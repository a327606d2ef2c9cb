from __future__ import annotations

from pathlib import Path

import pytest

from helpers.workflow import snakemake
from job_summaries import last_line


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("first\nlast\n", "last"),
        ("first\nlast", "last"),
        ("last\n\n  \n", "last"),
        ("", ""),
        ("\n", ""),
        ("x" * 5000 + "\nslide: 3 µm\n", "slide: 3 µm"),
    ],
)
def test_the_last_line_with_text_is_found(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "log").write_text(text)
    assert last_line(tmp_path / "log") == found
    assert last_line(tmp_path / "none") == ""


@pytest.mark.slow
@pytest.mark.workflow
def test_snakemake_prints_the_summary_of_each_job(run: Path) -> None:
    result = snakemake(run, "--quiet", "rules", "--forcerun", "patches", "--until", "patches")
    assert result.returncode == 0, result.stderr
    summaries = [line for line in result.stderr.splitlines() if line.startswith("patches: ")]
    assert [line.split(": ")[1] for line in sorted(summaries)] == ["normal-1", "tumor-1", "tumor-2"]
    assert all("tumour patches of " in line for line in summaries)
