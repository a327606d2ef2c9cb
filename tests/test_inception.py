from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import DATA
from wsi_pipeline.model.inception import InceptionV3, fold_batch_norms

GOLDEN = DATA.parent / "reference" / "inception_v3_golden.json"

pytestmark = pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden outputs at {GOLDEN}")


def formula(count: int, factor: float, offset: float, scale: float) -> np.ndarray:
    i = np.arange(count, dtype=np.float64)
    return np.modf(np.abs(np.sin(i * factor + offset) * scale))[0]


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(Path(GOLDEN).read_text())


@pytest.fixture(scope="module")
def network(golden: dict) -> InceptionV3:
    network = InceptionV3(1000, auxiliary=True)
    state = network.state_dict()
    for k, name in enumerate(sorted(state)):
        tensor = state[name]
        u = formula(tensor.numel(), 12.9898, k * 78.233, 43758.5453)
        if name.endswith("num_batches_tracked"):
            values = np.zeros(1)
        elif name.endswith("running_var"):
            values = 0.5 + u
        elif name.endswith(("running_mean", "bias")):
            values = (u - 0.5) * 0.1
        elif name.endswith("bn.weight"):
            values = 0.8 + 0.4 * u
        else:
            fan = tensor[0].numel()
            values = (u - 0.5) * 2 * np.sqrt(3 / fan) * 1.3
        state[name] = torch.from_numpy(values.astype(np.float32)).reshape(tensor.shape)
    network.load_state_dict(state)
    return network.double().eval()


def image(size: int) -> torch.Tensor:
    values = formula(2 * 3 * size * size, 0.37, 1.5, 1731.77) * 2 - 1
    return torch.from_numpy(values.astype(np.float32).astype(np.float64)).reshape(2, 3, size, size)


def test_names_and_shapes_match_torchvision(golden: dict) -> None:
    own = {name: list(t.shape) for name, t in InceptionV3(1000, auxiliary=True).state_dict().items()}
    assert own == golden["parameters"]
    assert list(own) == list(golden["parameters"])


@pytest.mark.parametrize("size", [299, 139, 96])
def test_logits_match_torchvision(golden: dict, network: InceptionV3, size: int) -> None:
    wanted = golden["outputs"][str(size)]
    with torch.inference_mode():
        logits = network(image(size)).numpy()
    np.testing.assert_allclose(logits[:, :8], wanted["logits_first_8"], atol=1e-6)
    np.testing.assert_allclose(logits.sum(axis=1), wanted["logits_sum"], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(logits, axis=1), wanted["logits_l2"], atol=1e-6)


def test_folding_batch_norms_keeps_the_logits(golden: dict, network: InceptionV3) -> None:
    wanted = golden["outputs"]["96"]["logits_first_8"]
    with torch.inference_mode():
        logits = fold_batch_norms(network)(image(96)).numpy()
    np.testing.assert_allclose(logits[:, :8], wanted, atol=1e-6)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fold_batch_norms(network).modules())


def test_auxiliary_logits_match_torchvision(golden: dict, network: InceptionV3) -> None:
    with torch.inference_mode():
        _, auxiliary = network.with_auxiliary(image(299))
    np.testing.assert_allclose(auxiliary.numpy()[:, :8], golden["outputs"]["299"]["aux_logits_first_8"], atol=1e-6)
