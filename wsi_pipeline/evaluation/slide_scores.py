"""One score for each slide, by the config's rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.evaluation.summary import Figures
from wsi_pipeline.io.digests import digest_json
from wsi_pipeline.seeds import generator

# None where nothing is predicted on a slide.
Features = dict[str, float] | None
Values = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class SlideScores:
    """The score of each slide, None where nothing is predicted, and what it is."""

    values: Values
    description: Figures


def by_maximum(features: Mapping[str, Features]) -> SlideScores:
    """The highest probability of each slide."""
    values = {slide: None if own is None else own["maximum"] for slide, own in features.items()}
    return SlideScores(values, {"score": "maximum of the heatmap"})


def by_top_share(means: Values, share: float) -> SlideScores:
    """The mean of the highest `share` of each slide's positions."""
    return SlideScores(means, {"score": f"mean of the highest {100 * share:g} % of the heatmap"})


def by_forest(
    features: Mapping[str, Features],
    fitted_on: Mapping[str, tuple[Features, str | None]],
    *,
    trees: int,
    seed: int,
) -> SlideScores:
    """The mean vote for tumour of a random forest (Breiman, Mach. Learn. 45, 2001) over features of heatmaps.

    `fitted_on` has features and label of other slides; those without features or label are left out. `ConfigError`
    where one class is missing.
    """
    # Slow to import, and needed for this alone.
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
    # One thread: the votes of many would be added in any order.
    forest = RandomForestClassifier(trees, class_weight="balanced", random_state=state, n_jobs=1)
    forest.fit(table(f for f, _ in known.values()), np.array([label == "tumor" for label in labels]))
    asked = {slide: f for slide, f in features.items() if f is not None}
    votes = forest.predict_proba(table(asked.values()))[:, 1].tolist() if asked else []
    description: Figures = {
        "score": f"random forest of {trees} trees over {len(names)} features of the heatmap",
        "fitted_on": "training and validation slides",
        "fitted_on_normal": labels.count("normal"),
        "fitted_on_tumor": labels.count("tumor"),
        "fitted_on_sha256": digest_json({slide: list(one) for slide, one in known.items()}),
        "importance": dict(zip(names, forest.feature_importances_.tolist(), strict=True)),
    }
    return SlideScores(dict.fromkeys(features) | dict(zip(asked, votes, strict=True)), description)
