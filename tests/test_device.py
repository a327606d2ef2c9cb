from __future__ import annotations

import pytest
import torch

from wsi_pipeline.errors import ModelError
from wsi_pipeline.model.device import local_gpu


def test_each_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_gpu() == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_gpu() == 1


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ModelError, match=r"process 2 of this training has no GPU: only 2 visible\. Request as many"):
        local_gpu()
