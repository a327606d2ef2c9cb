# The slides that are predicted in one job, with a model that is loaded once (heatmap.slides_per_job).
import re

from wsi_pipeline.io.digests import digest_json
from wsi_pipeline.provenance.snakemake_metadata import job_of_output
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.models import PredictReceipt


@cache
def batches(model):
    """The slides of each batch that a model predicts, by the name of the batch.

    The batches of finished jobs stay as they are, also where a slide has left the sheet, as long as its files are
    there, and slides that were predicted alone stay alone. So new slides are predicted in batches of their own, and
    another number of slides per job makes no job run again.
    """
    # A model of an earlier round predicts the training slides, to draw hard negatives.
    names = sorted(CHOSEN_ON + FITTED_ON + TEST if model == MODEL else TRAINING)
    found = {}
    receipts = [] if REMOTE else Path(RESULTS, "predictions", model).glob("*.json")
    for path in sorted(receipts):
        try:
            slides = read_receipt(path, PredictReceipt).slides
        except PipelineError:
            # Damaged, or of an earlier version: its slides are predicted in new batches.
            continue
        if set(slides) & set(names) and all(slide in SHEET or can_be_predicted(slide) for slide in slides):
            found[path.stem] = slides
    if CONFIG.heatmap.slides_per_job == 1:
        return found
    placed = {slide for slides in found.values() for slide in slides}
    waiting = [slide for slide in names if slide not in placed and not was_predicted_alone(model, slide)]
    for start in range(0, len(waiting), CONFIG.heatmap.slides_per_job):
        slides = waiting[start : start + CONFIG.heatmap.slides_per_job]
        found[digest_json(slides)[:12]] = slides
    return found


def was_predicted_alone(model, slide):
    """Whether a heatmap exists that Snakemake's records call the result of a job without predictions of a batch."""
    receipt = f"{RESULTS}/heatmaps/{model}/{slide}.json"
    job = job_of_output(Path(".snakemake"), receipt) if Path(receipt).is_file() else None
    return job is not None and not any(file.startswith(f"{RESULTS}/predictions/") for file in job.inputs)


def can_be_predicted(slide):
    names = ("pyramid.json", "pyramid.ome.zarr", "tissue.json", "tissue.ome.zarr")
    return all(Path(RESULTS, "slides", slide, name).exists() for name in names)


def batched_slides_without_row():
    batched = {slide for model in MODELS for slides in batches(model).values() for slide in slides}
    return sorted(batched - SHEET.keys())


@cache
def batch_by_slide(model):
    return {slide: batch for batch, slides in batches(model).items() for slide in slides}


def batch_slides(wildcards):
    return batches(wildcards.model)[wildcards.batch]


def of_batch(name):
    """Input function: a file of each slide of a batch."""
    return lambda wildcards: expand(f"{RESULTS}/slides/{{slide}}/{name}", slide=batch_slides(wildcards))


def batch_of_slide(wildcards):
    """The predictions of a slide's batch; nothing where the rule heatmap predicts its slide itself."""
    batch = batch_by_slide(wildcards.model).get(wildcards.slide)
    return [f"{RESULTS}/predictions/{wildcards.model}/{batch}"] if batch else []


wildcard_constraints:
    # Files of slides that have left the sheet, but not their batch, come from no rule.
    slide="".join(rf"(?!{re.escape(slide)}(?![A-Za-z0-9._-]))" for slide in batched_slides_without_row())
    + r"[A-Za-z0-9][A-Za-z0-9._-]*",
    model=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    batch=r"[0-9a-f]{12}",
