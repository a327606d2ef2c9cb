"""Train in float64, alone or as one of several processes (RANK and WORLD_SIZE), and print the loss of each step.

python tests/double_precision.py COHORT STEPS

All layers learn, but batch norms keep their initial statistics: PyTorch synchronises them on GPUs only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from helpers.training import OPTIONS
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.dataset import PatchDataset
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.distributed import init_distributed
from wsi_pipeline.model.model_dir import initial_network
from wsi_pipeline.model.patch_set import PatchSet
from wsi_pipeline.model.trainer import Trainer


def main(cohort: Path, steps: int) -> None:
    # Rounding differences grow with each step, and faster with a higher learning rate.
    gentle = {"learning_rate": 1e-5, "epsilon": 1.0, "momentum": 0.9, "squared_gradient_decay": 0.9}
    options = OPTIONS.model_copy(update={**gentle, "max_steps": steps, "validate_every": steps})
    device = pick_device(1)
    distributed = init_distributed()
    sets = PatchSet([cohort / "slides" / name / "patches.json" for name in ("n", "t")])
    dataset, empty = PatchDataset(sets.stores, sets.indices), PatchDataset([], [])
    network = initial_network("random", 2, 1, None).double().eval()
    network.train = lambda *_: network  # type: ignore[method-assign]
    trainer = Trainer(
        network, dataset, empty, options, device, Checkpoints(cohort / "none"), "", distributed=distributed
    )
    losses: list[float] = []
    trainer._record = lambda: losses.extend(trainer.progress.losses)  # type: ignore[method-assign]
    trainer.train(1e9)
    if distributed.is_main:
        print(json.dumps(losses))
    distributed.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
