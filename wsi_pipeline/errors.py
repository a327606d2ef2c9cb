"""Everything that the package raises on purpose.

::

    PipelineError              what a user can mend: one line, exit code 2
    ├── ConfigError            a key, a value or an option of the config
    ├── SheetError             a row of the slide sheet
    ├── SlideError             a slide file
    ├── AnnotationError        an annotation file
    ├── StoreError             a store or a receipt that an earlier stage wrote
    ├── ModelError             weights or a model folder
    ├── PredictionError        a file of another system's predictions
    └── IncompleteError        an evaluation that lacks slides

Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class PipelineError(Exception):
    """A mistake or a bad file that the user can mend; its text is one line."""

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        text = f"{problem}. {remedy}" if remedy else problem
        super().__init__(" ".join(text.split()))


class ConfigError(PipelineError):
    """The config or an option is wrong."""


class SheetError(PipelineError):
    """A row of the slide sheet is wrong."""


class SlideFileError(PipelineError):
    """A file of one slide is wrong; the text names both."""

    def __init__(self, slide: str, path: Path | str, problem: str, *, remedy: str) -> None:
        super().__init__(f"slide {slide}: {path}: {problem}", remedy=remedy)
        self.slide = slide
        self.path = path
        self.problem = problem
        self.remedy = remedy


class SlideError(SlideFileError):
    """A slide file cannot be used."""


class AnnotationError(SlideFileError):
    """An annotation file cannot be used."""


class StoreError(PipelineError):
    """A store or a receipt that an earlier stage wrote is missing or does not fit."""


class ModelError(PipelineError):
    """Weights or a model folder cannot be used."""


class PredictionError(PipelineError):
    """A file of predictions, labels or masks cannot be judged."""


class IncompleteError(PipelineError):
    """Slides that the evaluation needs are missing."""
