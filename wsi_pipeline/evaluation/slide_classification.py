"""The classification of slides: one score for each slide, by the rule of `evaluation.slide_level`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.cohort.sheet import Sheet
from wsi_pipeline.config import SlideLevelOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.evaluation.consistency import common_model
from wsi_pipeline.evaluation.slide_results import CohortResults, ResultFolders
from wsi_pipeline.evaluation.summary import Figures
from wsi_pipeline.io.digests import digest_json
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import ScoresReceipt
from wsi_pipeline.seeds import generator

# None for a slide without predicted positions.
Features = dict[str, float] | None
Values = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class SlideScores:
    """The score of each slide, None without predicted positions, and a description of the score."""

    values: Values
    description: Figures


def classify_slides(
    results: CohortResults, sheet: Sheet, folders: ResultFolders, options: SlideLevelOptions, seed: int
) -> SlideScores:
    """The scores of the slides in `results`; the forest is fitted on the training and validation slides of the sheet.

    Raises `StoreError` for slides of two models.
    """
    features = {s.row.slide: s.scores.features for s in results.slides}
    if options.score == "top_share":
        score = f"log odds of the mean probability of the highest {100 * options.top_share:g} % of the heatmap"
        return SlideScores(results.top_means, {"score": score})
    if options.score == "maximum" or not features:
        values = {slide: None if own is None else own["maximum"] for slide, own in features.items()}
        return SlideScores(values, {"score": "log odds of the maximum of the heatmap"})
    others = sheet.of_split("train", "validation")
    receipts = {slide: read_receipt(folders.scores / f"{slide}.json", ScoresReceipt) for slide in others}
    common_model([*((s, one.model_sha256) for s, one in receipts.items()), *(s.model for s in results.slides)])
    fitted_on = {slide: (one.features, sheet[slide].label) for slide, one in receipts.items()}
    return by_forest(features, fitted_on, trees=options.trees, seed=seed)


def by_forest(
    features: Mapping[str, Features],
    fitted_on: Mapping[str, tuple[Features, str | None]],
    *,
    trees: int,
    seed: int,
) -> SlideScores:
    """The mean vote for tumour of a random forest (Breiman, Mach. Learn. 45, 2001) over features of heatmaps.

    `fitted_on` has the features and the label of other slides; those that lack either are left out. Raises
    `ConfigError` unless both classes remain.
    """
    # Slow to import, and needed here only.
    from sklearn.ensemble import RandomForestClassifier

    known = {slide: (f, label) for slide, (f, label) in fitted_on.items() if f is not None and label is not None}
    labels = [label for _, label in known.values()]
    if set(labels) != {"normal", "tumor"}:
        raise ConfigError(
            "evaluation.slide_level.score forest needs normal and tumour slides in training and validation, there are "
            f"{labels.count('normal')} and {labels.count('tumor')} with a heatmap",
            remedy="Add or label such slides in the sheet, or set the score to maximum",
        )
    names = sorted(next(iter(known.values()))[0])

    def table(rows: Iterable[dict[str, float]]) -> NDArray[np.float64]:
        return np.array([[row[name] for name in names] for row in rows])

    state = int(generator(seed, "forest").integers(2**31))
    # One thread: several would add the votes in an arbitrary order, which changes the last bits.
    forest = RandomForestClassifier(trees, class_weight="balanced", random_state=state, n_jobs=1)
    forest.fit(table(f for f, _ in known.values()), np.array([label == "tumor" for label in labels]))
    scored = {slide: f for slide, f in features.items() if f is not None}
    votes = forest.predict_proba(table(scored.values()))[:, 1].tolist() if scored else []
    description: Figures = {
        "score": f"random forest of {trees} trees over {len(names)} features of the heatmap",
        "fitted_on": "training and validation slides",
        "fitted_on_normal": labels.count("normal"),
        "fitted_on_tumor": labels.count("tumor"),
        "fitted_on_sha256": digest_json({slide: list(one) for slide, one in known.items()}),
        "importance": dict(zip(names, forest.feature_importances_.tolist(), strict=True)),
    }
    return SlideScores(dict.fromkeys(features) | dict(zip(scored, votes, strict=True)), description)
