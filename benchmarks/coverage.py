"""Coverage of the 95 % intervals: how often they contain the true value, in simulated cohorts of known true values.

    python benchmarks/coverage.py [--differences] [--repeats 2000] [--slides 129 50 30 15 8 5] [--processes 1]

Slide AUC: normal distributions of the scores, with equal variances or with twice the standard deviation in tumour, or
a part of the tumour slides that score as normal ones do ("missed"), as slides with small metastases may.
Patches: scores with a random shift for each slide, a log-normal number of tumour patches, and higher scores in larger
lesions. FROC: random shifts for each slide, and most lesions and false positives on few slides. True values are a
formula (slide AUC) or those of a very large cohort. With --differences, intervals of the difference of two models whose
scores are correlated by 0.6: those of slides, or the shifts of a slide and the margins of its lesions. Prints Markdown
tables: coverage, and the mean width in brackets.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri

from wsi_pipeline.evaluation.confusion import RATIOS
from wsi_pipeline.metrics.curves import Histogram, auc
from wsi_pipeline.metrics.delong import auc_contributions, auc_interval
from wsi_pipeline.metrics.intervals import (
    Weights,
    is_constant,
    jackknife_interval,
    leave_out_weights,
    paired_difference,
)
from wsi_pipeline.metrics.lesions import PooledHits, SlideHits
from wsi_pipeline.metrics.pooled import histogram_aucs, histogram_average_precisions
from wsi_pipeline.seeds import generator

LEVEL = 0.95
# Standard deviations: logarithm of the number of tumour patches, shift of normal and of tumour scores of a slide.
SCENARIOS = {"usual": (1.5, 0.5, 0.8), "heavy tails": (2.2, 1.0, 2.0)}
TRUE_AUCS = (0.80, 0.97, 0.994)
SPREADS = (1.0, 2.0)
# Distance of the tumour slides that are found from the normal ones, in standard deviations.
FOUND_SHIFT = 8.0
# The slide set of Camelyon16: the ratio of the classes in all cohorts.
ALL_SLIDES, TUMOR_SLIDES = 129, 49
REPEATS_A_JOB = 50
SLIDE_AUC = "slide AUC"
# Differences: correlation of the models, pairs of AUCs of slides, and by how much the second model scores tumour lower.
CORRELATION = 0.6
PAIRS_OF_AUCS = ((0.80, 0.80), (0.97, 0.97), (0.97, 0.90), (0.97, 0.80), (0.994, 0.97))
DEFICITS = (0.0, 1.0)
# Bins of the patch scores, which are log odds, and the operating point.
EDGES = np.concatenate(([-np.inf], np.linspace(-5, 9, 199), [np.inf]))
OPERATING_BIN = 107

Floats = NDArray[np.float64]
# For each figure (part and name) whether each repeat covers the true value, and the width.
Results = dict[tuple[str, str], list[tuple[bool, float]]]


@dataclass(frozen=True, slots=True)
class Job:
    """Some repeats of one number of slides; `truth` has the true values of the figures by part."""

    seed: int
    number: int
    slides: int
    repeats: int
    truth: dict[str, dict[str, float]]


def classes(slides: int) -> tuple[int, int]:
    """Numbers of normal and tumour slides."""
    tumor = round(slides * TUMOR_SLIDES / ALL_SLIDES)
    return slides - tumor, tumor


def slide_scores(rng: np.random.Generator, slides: int, area: float, spread: float) -> tuple[Floats, NDArray[np.bool_]]:
    normal, tumor = classes(slides)
    shift = ndtri(area) * np.hypot(1, spread)
    scores = np.concatenate((rng.normal(0, 1, normal), rng.normal(shift, spread, tumor)))
    return scores, np.arange(slides) >= normal


def slide_scores_with_missed(rng: np.random.Generator, slides: int, area: float) -> tuple[Floats, NDArray[np.bool_]]:
    normal, tumor = classes(slides)
    found = rng.random(tumor) < (area - 0.5) / (ndtr(FOUND_SHIFT / math.sqrt(2)) - 0.5)
    scores = rng.normal(np.concatenate((np.zeros(normal), FOUND_SHIFT * found)), 1)
    return scores, np.arange(slides) >= normal


def expected_patches(
    rng: np.random.Generator, scenario: str, normal: int, tumor: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Number of normal and of tumour patches of each slide, (slides,), and the shares in bins, (slides, bins)."""
    patches, lesion, size = slide_sizes(rng, scenario, normal, tumor)
    _, of_normal, of_tumor = SCENARIOS[scenario]
    shift = rng.normal(0, of_normal, normal + tumor), 3 + 0.3 * size + rng.normal(0, of_tumor, normal + tumor)
    return patches - lesion, lesion, shares_in_bins(shift[0]), shares_in_bins(shift[1])


def slide_sizes(rng: np.random.Generator, scenario: str, normal: int, tumor: int) -> tuple[Floats, Floats, Floats]:
    """Number of patches and of tumour patches of each slide, and the logarithm of the latter, standardised."""
    slides = normal + tumor
    patches = np.rint(rng.lognormal(np.log(1500), 0.4, slides))
    size = rng.normal(0, 1, slides)
    lesion = np.clip(np.rint(20 * np.exp(SCENARIOS[scenario][0] * size)), 1, 0.8 * patches)
    return patches, lesion * (np.arange(slides) >= normal), size


def shares_in_bins(shift: Floats) -> Floats:
    return np.diff(ndtr(EDGES - shift[:, None]), axis=1)


def patch_figures(normal: Floats, tumor: Floats) -> dict[str, Floats]:
    """Figures (n,) of histograms (n, bins)."""
    tp, fp = (part[:, OPERATING_BIN:].sum(axis=1) for part in (tumor, normal))
    cells = np.stack((tp, fp, tumor.sum(axis=1) - tp, normal.sum(axis=1) - fp))
    return {
        "patch AUC": histogram_aucs(normal, tumor),
        "average precision": histogram_average_precisions(normal, tumor),
        **{name: ratio(cells) for name, ratio in RATIOS.items()},
    }


def slide_hits(rng: np.random.Generator, normal: int, tumor: int) -> list[SlideHits]:
    found = []
    for number in range(normal + tumor):
        lesions: Floats = np.zeros(0)
        if number >= normal:
            count = min(1 + rng.poisson(rng.lognormal(0.4, 0.8)), 40)
            margin = 1 + rng.normal(0, 0.8) + rng.normal(0, 1.4, count)
            lesions = np.where(margin > -1, expit(margin), np.nan)
        false = rng.normal(rng.normal(-1, 0.5), 1.2, rng.poisson(rng.lognormal(0.4, 0.8)))
        hits = tuple(None if math.isnan(c) else c for c in lesions.tolist())
        found.append(SlideHits(hits, tuple(expit(false).tolist())))
    return found


def froc_figures(hits: Sequence[SlideHits], weights: Weights) -> dict[str, Floats]:
    """FROC with interpolation, (rows,), over all thresholds and by Camelyon16's rule."""
    all_thresholds, camelyon16 = PooledHits(hits, missed=0.0).weighted(weights)[:, 0]
    return {"FROC": camelyon16, "FROC, all thresholds": all_thresholds}


def true_values(seed: int) -> dict[str, dict[str, float]]:
    """True values of the figures of patches by scenario, and of FROC."""
    rng = generator(seed, "coverage", "truth")
    found = {}
    for scenario in SCENARIOS:
        sums = np.zeros((2, len(EDGES) - 1))
        for _ in range(200):
            n_normal, n_tumor, normal, tumor = expected_patches(rng, scenario, *classes(ALL_SLIDES * 20))
            sums += n_normal @ normal, n_tumor @ tumor
        found[scenario] = {name: float(value[0]) for name, value in patch_figures(sums[:1], sums[1:]).items()}
    slides = ALL_SLIDES * 300
    scores = froc_figures(slide_hits(rng, *classes(slides)), np.ones((1, slides), np.int32))
    return found | {"lesions": {name: float(value[0]) for name, value in scores.items()}}


def drawn_histograms(rng: np.random.Generator, scenario: str, slides: int) -> list[Floats]:
    """Normal and tumour patches of a cohort, (slides, bins) each."""
    n_normal, n_tumor, normal, tumor = expected_patches(rng, scenario, *classes(slides))
    return [
        rng.multinomial(n.astype(np.int64), share / share.sum(axis=1, keepdims=True)).astype(np.float64)
        for n, share in ((n_normal, normal), (n_tumor, tumor))
    ]


def simulate(job: Job) -> Results:
    """Results of one job."""
    rng = generator(job.seed, "coverage", job.slides, job.number)
    of_missed = generator(job.seed, "missed", job.slides, job.number)
    weights, all_slides = leave_out_weights(job.slides), np.ones((1, job.slides), np.int32)
    results: Results = {}

    def add(part: str, name: str, true: float, low: float, high: float) -> None:
        results.setdefault((part, name), []).append((low <= true <= high, high - low))

    for _ in range(job.repeats):
        for spread in SPREADS:
            for area in TRUE_AUCS:
                limits = auc_interval(*slide_scores(rng, job.slides, area, spread), LEVEL)
                add(SLIDE_AUC, f"{area:g}, {spread:g}", area, *limits)
        for area in TRUE_AUCS:
            limits = auc_interval(*slide_scores_with_missed(of_missed, job.slides, area), LEVEL)
            add(SLIDE_AUC, f"{area:g}, missed", area, *limits)
        figures: dict[str, tuple[dict[str, Floats], ...]] = {}
        for scenario in SCENARIOS:
            counts = drawn_histograms(rng, scenario, job.slides)
            figures[scenario] = tuple(patch_figures(*(w @ part for part in counts)) for w in (all_slides, weights))
        hits = slide_hits(rng, *classes(job.slides))
        figures["lesions"] = tuple(froc_figures(hits, w) for w in (all_slides, weights))
        for part, (of_all, left_out) in figures.items():
            for name, true in job.truth[part].items():
                counted = job.slides if name == "specificity" else classes(job.slides)[1]
                found = jackknife_interval(of_all[name], left_out[name][:, None], counted, LEVEL)
                add(part, name, true, *(float(limit[0]) for limit in found))
    return results


def correlated(rng: np.random.Generator, *size: int) -> Floats:
    """Standard normal numbers of two models, (2, *size)."""
    return math.sqrt(CORRELATION) * rng.normal(0, 1, size) + math.sqrt(1 - CORRELATION) * rng.normal(0, 1, (2, *size))


def paired_histograms(rng: np.random.Generator, normal: int, tumor: int, deficit: float) -> list[list[Floats]]:
    """Expected normal and tumour patches of each slide for each of two models, (slides, bins)."""
    patches, lesion, size = slide_sizes(rng, "usual", normal, tumor)
    _, of_normal, of_tumor = SCENARIOS["usual"]
    shifts = zip(correlated(rng, len(size)), correlated(rng, len(size)), (0.0, deficit), strict=True)
    return [
        [
            (patches - lesion)[:, None] * shares_in_bins(of_normal * one),
            lesion[:, None] * shares_in_bins(3 - less + 0.3 * size + of_tumor * other),
        ]
        for one, other, less in shifts
    ]


def paired_hits(rng: np.random.Generator, normal: int, tumor: int, deficit: float) -> list[list[SlideHits]]:
    """Hits of each slide for each of two models: the margins of `slide_hits`."""
    found: list[list[SlideHits]] = [[], []]
    for number in range(normal + tumor):
        count = min(1 + rng.poisson(rng.lognormal(0.4, 0.8)), 40) if number >= normal else 0
        margins = 1 + 0.8 * correlated(rng, 1) + 1.4 * correlated(rng, count) - [[0.0], [deficit]]
        means, rate = -1 + 0.5 * correlated(rng, 1), rng.lognormal(0.4, 0.8)
        for hits, margin, mean in zip(found, margins, means, strict=True):
            false = rng.normal(mean, 1.2, rng.poisson(rate))
            lesions = (float(m) if m > -1 else None for m in margin)
            hits.append(SlideHits(tuple(lesions), tuple(false.tolist())))
    return found


def patch_aucs(models: Sequence[Sequence[Floats]], weights: Weights) -> list[Floats]:
    return [histogram_aucs(weights @ normal, weights @ tumor) for normal, tumor in models]


def froc_scores(models: Sequence[Sequence[SlideHits]], weights: Weights) -> list[Floats]:
    return [PooledHits(hits).weighted(weights)[1, 0] for hits in models]


def true_differences(seed: int) -> dict[str, dict[str, float]]:
    """True differences of patch AUC and FROC by deficit of the second model."""
    rng = generator(seed, "coverage", "true differences")
    found: dict[str, dict[str, float]] = {"patch AUC": {}, "FROC": {}}
    for deficit in DEFICITS:
        sums = np.zeros((2, 2, len(EDGES) - 1))
        for _ in range(50):
            sums += np.sum(paired_histograms(rng, *classes(ALL_SLIDES * 20), deficit), axis=2)
        hits = paired_hits(rng, *classes(ALL_SLIDES * 200), deficit)
        scores = {
            "patch AUC": [histogram_aucs(*one[:, None]) for one in sums],
            "FROC": froc_scores(hits, np.ones((1, len(hits[0])), np.int32)),
        }
        for name, (one, other) in scores.items():
            found[name][f"{deficit:g}"] = float((one - other)[0]) if deficit else 0.0
    return found


def simulate_differences(job: Job) -> Results:
    """Results of one job for the differences of two models.

    As in the command compare, there is no interval without variance, and none where a figure other than the slide AUC
    is the same for one model whichever slide is left out.
    """
    rng = generator(job.seed, "coverage", "differences", job.slides, job.number)
    normal, tumor = classes(job.slides)
    is_tumor = np.arange(job.slides) >= normal
    weights, all_slides = leave_out_weights(job.slides), np.ones((1, job.slides), np.int32)
    results: Results = {}

    def add(part: str, name: str, true: float, difference: float, changes: Floats) -> None:
        limits = paired_difference(difference, changes, LEVEL).limits
        if limits is not None:
            results.setdefault((part, name), []).append((limits[0] <= true <= limits[1], limits[1] - limits[0]))

    for _ in range(job.repeats):
        for areas in PAIRS_OF_AUCS:
            scores = correlated(rng, job.slides) + np.outer(ndtri(areas) * math.sqrt(2), is_tumor)
            one, other = (auc(Histogram.of(own, is_tumor)) or 0.0 for own in scores)
            contributions = np.asarray(auc_contributions(scores, is_tumor))
            name = f"{areas[0]:g} and {areas[1]:g}"
            add(SLIDE_AUC, name, areas[0] - areas[1], one - other, contributions[0] - contributions[1])
        for deficit in DEFICITS:
            expected = paired_histograms(rng, normal, tumor, deficit)
            counts = [[rng.poisson(part).astype(np.float64) for part in one] for one in expected]
            hits = paired_hits(rng, normal, tumor, deficit)
            for part, of_all, left_out in (
                ("patch AUC", patch_aucs(counts, all_slides), patch_aucs(counts, weights)),
                ("FROC", froc_scores(hits, all_slides), froc_scores(hits, weights)),
            ):
                one, other = (left - own[0] for left, own in zip(left_out, of_all, strict=True))
                if is_constant(one) == is_constant(other):
                    true = job.truth[part][f"{deficit:g}"]
                    add(part, f"{deficit:g}", true, float((of_all[0] - of_all[1])[0]), one - other)
    return results


def table(names: Sequence[tuple[str, str]], of_slides: dict[int, Results]) -> str:
    lines = [f"| slides (normal, tumour) | {' | '.join(name for _, name in names)} |", "|---" * (len(names) + 1) + "|"]
    for slides, results in of_slides.items():
        cells = []
        for name in names:
            covered, widths = zip(*results[name], strict=True)
            cells.append(f"{np.mean(covered):.3f} ({np.nanmean(widths):.2f})")
        normal, tumor = classes(slides)
        lines.append(f"| {slides} ({normal}, {tumor}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--differences", action="store_true", help="intervals of differences of two models")
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--slides", type=int, nargs="+", default=[129, 50, 30, 15, 8, 5])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    truth = (true_differences if arguments.differences else true_values)(arguments.seed)
    found: dict[int, Results] = {slides: {} for slides in arguments.slides}
    jobs = [
        Job(arguments.seed, start, slides, min(REPEATS_A_JOB, arguments.repeats - start), truth)
        for slides in arguments.slides
        for start in range(0, arguments.repeats, REPEATS_A_JOB)
    ]
    with get_context("spawn").Pool(arguments.processes) as pool:
        function = simulate_differences if arguments.differences else simulate
        for job, results in zip(jobs, pool.imap(function, jobs), strict=True):
            for name, values in results.items():
                found[job.slides].setdefault(name, []).extend(values)
    columns = [f"{area:g}, {kind}" for kind in (*(f"{spread:g}" for spread in SPREADS), "missed") for area in TRUE_AUCS]
    if arguments.differences:
        columns = [f"{one:g} and {other:g}" for one, other in PAIRS_OF_AUCS]
    print(
        f"{arguments.repeats} repeats.\n\n{SLIDE_AUC}: true value, ratio of the standard deviations, or true values\n"
    )
    print(table([(SLIDE_AUC, name) for name in columns], found))
    for part, true in truth.items():
        print(f"\n{part}: true values {', '.join(f'{name} {value:.4f}' for name, value in true.items())}\n")
        print(table([(part, name) for name in true], found))


if __name__ == "__main__":
    main()
