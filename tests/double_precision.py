"""Train in float64 as the member of a team that the environment names; prints the loss of each step as JSON.

python tests/double_precision.py COHORT STEPS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from helpers.training import OPTIONS
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.dataset import PatchBank
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.distributed import join
from wsi_pipeline.model.model_dir import starting_network
from wsi_pipeline.model.trainer import Trainer
from wsi_pipeline.stages.train import PatchSet


def main(cohort: Path, steps: int) -> None:
    # A random network is chaotic: what differs in the last bit grows with each step, the faster the larger they are.
    gentle = {"learning_rate": 1e-5, "epsilon": 1.0, "momentum": 0.9, "squared_gradient_decay": 0.9}
    options = OPTIONS.model_copy(update={**gentle, "max_steps": steps, "validate_every": steps})
    device, team = pick_device(1), join()
    sets = PatchSet.of([cohort / "slides" / name / "patches.json" for name in ("n", "t")])
    bank, nothing = PatchBank(sets.stores, sets.indices), PatchBank([], [])
    network = starting_network("random", 2, 1, None).double()
    trainer = Trainer(network, bank, nothing, options, device, Checkpoints(cohort / "none"), "", team=team)
    found: list[float] = []
    trainer._record = lambda: found.extend(trainer.progress.losses)  # type: ignore[method-assign]
    trainer.train(1e9)
    if team.leads:
        print(json.dumps(found))
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
