"""Run a predictor on the patches of a slide: reading, copying and inference overlap, in bounded memory."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.model.device import copy_to_cpu
from wsi_pipeline.model.predictor import Predictor
from wsi_pipeline.progress_bar import ProgressBar, on_terminal
from wsi_pipeline.pyramid.patch_reader import PatchReader

log = logging.getLogger(__name__)

_LOG_SECONDS = 30.0
# On a GPU: patches read by one task of a thread, and batches read in advance.
_READ_TOGETHER = 16
_READ_AHEAD = 3

Value = TypeVar("Value")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PredictedPatches:
    """Log odds (n,) float32 of the patches from index `first` on; `whole` (n,) is False on damaged chunks."""

    first: int
    log_odds: NDArray[np.float32]
    whole: NDArray[np.bool_]


def run_inference(
    reader: PatchReader, predictor: Predictor, threads: int, first: int = 0
) -> Iterator[PredictedPatches]:
    """Predict the patches of a reader from index `first` on, in reading order, batch by batch.

    Progress is shown as a bar on a terminal, or logged every 30 s.
    """
    parts = (infer_on_gpu if predictor.device.is_cuda else infer_on_cpu)(reader, predictor, threads, first)
    with ProgressBar("predicting", len(reader), first) as bar:
        for predicted in parts:
            yield predicted
            bar.update(predicted.first + len(predicted.whole))


def infer_on_cpu(reader: PatchReader, predictor: Predictor, threads: int, first: int = 0) -> Iterator[PredictedPatches]:
    """`run_inference` on a CPU: each thread reads its own batch and runs the network on it with a single core.

    Threads that share a convolution would wait for each other, and their number would change the last bits.
    """
    throughput = Throughput(len(reader), first, threads)

    def work(start: int) -> PredictedPatches:
        began = time.perf_counter()
        pixels = torch.empty((min(predictor.batch_size, len(reader) - start), *reader.shape), dtype=torch.uint8)
        whole = reader.read(start, pixels.numpy())
        throughput.add_wait(time.perf_counter() - began)
        return PredictedPatches(start, predictor(pixels).numpy(), whole)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for predicted in map_ordered(pool, work, range(first, len(reader), predictor.batch_size), 2 * threads):
            yield predicted
            throughput.log_progress(predicted.first + len(predicted.whole))


def infer_on_gpu(reader: PatchReader, predictor: Predictor, threads: int, first: int = 0) -> Iterator[PredictedPatches]:
    """`run_inference` on a GPU: threads fill batches in page-locked memory while the GPU runs earlier ones."""
    throughput = Throughput(len(reader), first, 1)
    is_cuda = predictor.device.is_cuda
    copy_stream = torch.cuda.Stream(predictor.device.device) if is_cuda else None  # type: ignore[no-untyped-call]

    def submit(start: int) -> tuple[int, Tensor, list[Future[NDArray[np.bool_]]]]:
        count = min(predictor.batch_size, len(reader) - start)
        pixels = torch.empty((count, *reader.shape), dtype=torch.uint8, pin_memory=is_cuda)
        out = pixels.numpy()
        parts = range(0, count, _READ_TOGETHER)
        return start, pixels, [pool.submit(reader.read, start + k, out[k : k + _READ_TOGETHER]) for k in parts]

    def upload(pixels: Tensor) -> Tensor:
        if copy_stream is None:
            return pixels
        compute_stream = torch.cuda.current_stream(predictor.device.device)
        with torch.cuda.stream(copy_stream):
            on_device = pixels.to(predictor.device.device, non_blocking=True)
        compute_stream.wait_stream(copy_stream)
        on_device.record_stream(compute_stream)
        return on_device

    launched: deque[tuple[int, Callable[[], Tensor], NDArray[np.bool_]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        starts = iter(range(first, len(reader), predictor.batch_size))
        pending = deque(submit(start) for start in islice(starts, _READ_AHEAD))
        try:
            while pending or launched:
                if pending:
                    start, pixels, parts = pending.popleft()
                    began = time.perf_counter()
                    whole = np.concatenate([part.result() for part in parts])
                    throughput.add_wait(time.perf_counter() - began)
                    pending.extend(submit(following) for following in islice(starts, 1))
                    launched.append((start, copy_to_cpu(predictor(upload(pixels))), whole))
                # Fetch a batch only after the next one is queued: fetching first would leave the GPU idle meanwhile.
                if len(launched) > 1 or not pending:
                    start, log_odds, whole = launched.popleft()
                    yield PredictedPatches(start, log_odds().numpy(), whole)
                    throughput.log_progress(start + len(whole))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def map_ordered(
    pool: ThreadPoolExecutor, function: Callable[[Item], Value], items: Iterable[Item], ahead: int
) -> Iterator[Value]:
    """Results of `function` in the order of `items`, computed by the pool at most `ahead` items in advance."""
    iterator = iter(items)
    pending = deque(pool.submit(function, item) for item in islice(iterator, ahead))
    try:
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(iterator, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Throughput:
    """Logs patches a second, the share of time that `workers` wait for pixels, and the time left."""

    def __init__(self, total: int, first: int, workers: int) -> None:
        self._total, self._first = total, first
        self._workers = workers
        self._began = self._logged = time.perf_counter()
        self._waited = 0.0
        self._lock = threading.Lock()

    def add_wait(self, seconds: float) -> None:
        """Add the seconds that a worker has waited for pixels."""
        with self._lock:
            self._waited += seconds

    def log_progress(self, number: int) -> None:
        """All patches before index `number` are done."""
        now = time.perf_counter()
        if number < self._total and (now - self._logged < _LOG_SECONDS or on_terminal()):
            return
        self._logged = now
        passed = now - self._began
        rate = (number - self._first) / passed
        log.info(
            "%d of %d patches, %.1f/s, %.0f %% of the time spent reading, %.1f min left",
            number,
            self._total,
            rate,
            100 * self._waited / passed / self._workers,
            (self._total - number) / rate / 60,
        )
