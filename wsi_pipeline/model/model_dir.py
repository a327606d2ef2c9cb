"""The model folder (`weights.safetensors`, `model.json`), and initial weights for training."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wsi_pipeline.config import TrainRun
from wsi_pipeline.errors import ModelError
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.io.digests import digest_file
from wsi_pipeline.model.imagenet import OFFLINE, check_imagenet
from wsi_pipeline.model.inception import InceptionV3, initialize, initialize_head
from wsi_pipeline.receipts.base import read_any_version, write_receipt
from wsi_pipeline.receipts.models import ModelReceipt

ARCHITECTURE = "inception_v3"
# Of the values of a pixel, 0 to 255.
NORMALISATION = "pixel / 127.5 - 1"
_OWN = "Use the model.json that training wrote"


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What prediction needs to know about a model: patch size, um per pixel, class names, digest of the weights."""

    size_px: int
    mpp: float
    classes: tuple[str, ...]
    weights_sha256: str
    stain_normalisation: str = "none"

    @property
    def tumor(self) -> int:
        """Index of the class tumor."""
        return self.classes.index("tumor")


def save_weights(path: Path, state: dict[str, Tensor]) -> str:
    """Write a state dict as safetensors, atomically. Returns the file's SHA-256."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_output(path) as partial:
        save_file(plain, partial)
    return digest_file(path)


def write_model_json(path: Path, metadata: ModelMetadata, source_fingerprint: str | None = None) -> None:
    """Write the `model.json` of weights that were taken from elsewhere, from a file with `source_fingerprint`."""
    write_receipt(
        path,
        ModelReceipt(
            architecture=ARCHITECTURE,
            size_px=metadata.size_px,
            mpp=metadata.mpp,
            classes=metadata.classes,
            normalisation=NORMALISATION,
            stain_normalisation=metadata.stain_normalisation,
            weights_sha256=metadata.weights_sha256,
            taken=True,
            source_fingerprint=source_fingerprint,
        ),
    )


def read_model_json(path: Path) -> ModelMetadata:
    """The facts in a `model.json`, which may come from elsewhere and from any version of the stage train.

    Raises `StoreError` where it is no receipt of that stage, `ModelError` where a key is missing or unusable.
    """
    content = read_any_version(path, TrainRun.stage)
    try:
        if content["architecture"] != ARCHITECTURE:
            raise ModelError(f"{path}: architecture {content['architecture']}, not {ARCHITECTURE}")
        facts = ModelMetadata(
            size_px=int(content["size_px"]),
            mpp=float(content["mpp"]),
            classes=tuple(content["classes"]),
            weights_sha256=content["weights_sha256"],
            stain_normalisation=content.get("stain_normalisation", "none"),
        )
    except KeyError as error:
        raise ModelError(f"{path}: key {error.args[0]} is missing", remedy=_OWN) from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: invalid value ({error})", remedy=_OWN) from error
    if "tumor" not in facts.classes:
        raise ModelError(
            f"{path}: none of the classes {', '.join(map(str, facts.classes))} is tumor",
            remedy="Rename the class to be predicted to tumor in it",
        )
    return facts


def load_network(weights: Path, facts: ModelMetadata) -> InceptionV3:
    """The network with trained weights, in evaluation mode. Raises `ModelError`, see `load_state`."""
    network = InceptionV3(len(facts.classes))
    load_state(network, read_weights(weights), weights)
    return network.eval()


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file. Raises `ModelError` where it cannot be read."""
    try:
        return digest_file(path)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror})", remedy="Give the weights.safetensors of a model folder"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors. Raises `ModelError` on any other format: pickles can execute code."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a safetensors file ({error})", remedy="Give the weights.safetensors of a model folder"
        ) from error


def load_state(network: InceptionV3, state: dict[str, Tensor], origin: Path) -> None:
    """Load a state dict with exactly the names and shapes of the network; a surplus auxiliary head is ignored.

    Raises `ModelError` with the first difference; `origin` is the file to name.
    """
    own = network.state_dict()
    given = {k: v for k, v in state.items() if k in own or not k.startswith("AuxLogits.")}
    for name in sorted(own.keys() | given.keys()):
        if name not in given or name not in own:
            where = "the weights" if name not in given else "the network"
            raise ModelError(f"{origin}: not weights of this Inception-v3: {name} is not in {where}")
        if given[name].shape != own[name].shape:
            raise ModelError(
                f"{origin}: {name} is {tuple(given[name].shape)}, but the network has {tuple(own[name].shape)}"
            )
    network.load_state_dict(given)


def initial_network(
    start: str, classes: int, seed: int, imagenet: Path | None, *, auxiliary: bool = False
) -> InceptionV3:
    """The network at the start of training. `start` is random, imagenet, or the path of another model's weights.

    `imagenet` is torchvision's weights file. Last layers of another number of classes, and an auxiliary head that the
    weights lack, are initialised at random from `seed`. Raises `ModelError` where the weights do not fit.
    """
    network = InceptionV3(classes, auxiliary=auxiliary)
    initialize(network, seed)
    if start == "random":
        return network
    if start == "imagenet":
        if imagenet is None:
            raise ModelError("training starts from ImageNet weights, but no file is given", remedy=OFFLINE)
        state, origin = read_imagenet(imagenet), imagenet
    else:
        origin = Path(start)
        state = read_weights(origin)
    own = network.state_dict()
    if state.get("fc.weight", network.fc.weight).shape != network.fc.weight.shape:
        initialize_head(network.fc, torch.Generator().manual_seed(seed))
        state = {**state, "fc.weight": own["fc.weight"], "fc.bias": own["fc.bias"]}
    for name in (name for name in own if name.startswith("AuxLogits.")):
        if name not in state or (name.startswith("AuxLogits.fc.") and state[name].shape != own[name].shape):
            state = {**state, name: own[name]}
    load_state(network, state, origin)
    return network


def read_imagenet(path: Path) -> dict[str, Tensor]:
    """State dict of torchvision's published file. Raises `ModelError` on any other file."""
    check_imagenet(path)
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path}: not a PyTorch weights file ({error})", remedy=OFFLINE) from error
    return state
