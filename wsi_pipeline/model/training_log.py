"""Progress of a training: a bar on a terminal, otherwise a log line every 30 s; event files for TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from wsi_pipeline.progress_bar import ProgressBar, on_terminal

log = logging.getLogger(__name__)

_LOG_SECONDS = 30.0


class HistoryRow(TypedDict):
    """A validation: the step it follows, patches trained on so far, and mean losses; None without validation patches.

    `validation_auc` is None too where the validation patches are all of one class.
    """

    step: int
    patches: int
    learning_rate: float
    train_loss: float
    validation_loss: float | None
    validation_auc: float | None


class TrainingLog:
    """Logs a training; does nothing unless `enabled`. `events` is a folder for TensorBoard."""

    def __init__(self, *, enabled: bool = False, events: Path | None = None) -> None:
        self._enabled = enabled
        self._bar: ProgressBar | None = None
        self._writer: Any = None
        if events is not None and enabled:
            # Slow to import, and rarely needed.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(events))
        self._first = self._steps = self._batch = 0
        self._began = self._logged = time.monotonic()

    def begin(self, step: int, steps: int, batch: int) -> None:
        """The loop starts at step `step` of `steps`, with `batch` patches a step."""
        self._first, self._steps = step, steps
        self._batch = batch
        self._began = self._logged = time.monotonic()
        if self._enabled:
            self._bar = ProgressBar("training", steps, step)

    def step(self, step: int, loss: float | None, waited: float) -> None:
        """`step` steps are done; the loop has waited `waited` seconds for patches since its start."""
        now = time.monotonic()
        shown = f"loss {short(loss)}"
        if self._bar is not None:
            self._bar.update(step, shown)
        if now - self._logged < _LOG_SECONDS:
            return
        self._logged = now
        rate = (step - self._first) / (now - self._began)
        images = rate * self._batch
        idle = waited / (now - self._began)
        if self._enabled and not on_terminal():
            log.info(
                "step %d of %d, %.1f images/s, %.0f %% of the time waiting for patches, %.0f min left, %s",
                step,
                self._steps,
                images,
                100 * idle,
                (self._steps - step) / rate / 60,
                shown,
            )
        self._scalars(step, {"images_per_second": images, "share_waiting": idle})

    def record(self, row: HistoryRow) -> None:
        """Log a row of the history, after a validation."""
        if self._enabled:
            log.info(
                "step %d: training loss %.4f, validation loss %s, AUC %s",
                row["step"],
                row["train_loss"],
                short(row["validation_loss"]),
                short(row["validation_auc"]),
            )
        values = cast("dict[str, float | None]", row)
        self._scalars(row["step"], {name: value for name, value in values.items() if name != "step"})

    def image(self, pixels: np.ndarray) -> None:
        """Log the picture of augmented patches, (h, w, 3) uint8."""
        if self._writer is not None:
            self._writer.add_image("augmented_batch", pixels, 0, dataformats="HWC")

    def close(self) -> None:
        """Close the bar and the event files."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, step: int, values: dict[str, float | None]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()


def history_csv(rows: Sequence[HistoryRow]) -> str:
    """The history as CSV, floats with 6 digits; cells of None are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HistoryRow.__annotations__, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)
    return text.getvalue()


def short(value: float | None) -> str:
    """Four decimals, or the word none."""
    return "none" if value is None else f"{value:.4f}"
