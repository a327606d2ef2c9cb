"""The exceptions of the package.

::

    PipelineError              a user can correct it: one line, exit code 2
    ├── ConfigError            a key or value of the config, or an option
    ├── SheetError             rows of the slide sheet: one line each
    ├── SlideError             a slide file
    ├── AnnotationError        an annotation file
    ├── StoreError             a store or a receipt that an earlier stage wrote
    ├── ModelError             weights or a model folder
    ├── PredictionError        a file of predictions from another system
    └── IncompleteError        slides are missing from an evaluation

Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

# A wrong folder in all paths of a sheet would hide other mistakes among thousands of lines.
_SHOWN_MISTAKES = 20


class PipelineError(Exception):
    """A mistake or a bad file that the user can correct. The text is one line: the problem, then the remedy."""

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        text = f"{problem}. {remedy}" if remedy else problem
        super().__init__(" ".join(text.split()))


class ConfigError(PipelineError):
    """The config or an option is wrong."""


class SheetError(PipelineError):
    """The slide sheet is wrong; one line for each mistake."""

    @classmethod
    def of(cls, mistakes: Sequence[SheetError]) -> Self:
        """All mistakes of a sheet as one error; of many mistakes the first ones."""
        lines = [str(mistake) for mistake in mistakes[:_SHOWN_MISTAKES]]
        if len(mistakes) > len(lines):
            lines.append(f"{len(mistakes) - len(lines)} more mistakes in the slide sheet")
        combined = cls("")
        combined.args = ("\n".join(lines),)
        return combined


class SlideFileError(PipelineError):
    """A file of one slide is wrong; the text names the slide and the file."""

    def __init__(self, slide: str, path: Path | str, problem: str, *, remedy: str) -> None:
        super().__init__(f"slide {slide}: {path}: {problem}", remedy=remedy)
        self.problem = problem
        self.remedy = remedy


class SlideError(SlideFileError):
    """A slide file cannot be used."""


class AnnotationError(SlideFileError):
    """An annotation file cannot be used."""


class StoreError(PipelineError):
    """A store or a receipt of an earlier stage is missing, damaged or inconsistent."""


class ModelError(PipelineError):
    """Weights or a model folder cannot be used."""


class PredictionError(PipelineError):
    """A file of predictions, labels or masks from another system cannot be evaluated."""


class IncompleteError(PipelineError):
    """Slides that the evaluation needs are missing."""
