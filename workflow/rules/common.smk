# Config and sheet, checked before any job starts, and the helper functions of the rules.
import gc
import sys
from functools import cache
from pathlib import Path
from shlex import quote

from snakemake.utils import validate

from wsi_pipeline.config import STAGES, TissueRun
from wsi_pipeline.config.loading import check_weights, load_config, options_json
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.io.fingerprints import Fingerprints
from wsi_pipeline.io.layout import keeps_model
from wsi_pipeline.cohort.sheet import is_remote, load_sheet

# Modules that depend on Snakemake or SLURM; the package depends on neither. `source_path` also resolves them where
# another workflow uses this one as a module, and fetches them where that is from a repository.
for name in ("job_summaries", "slurm_checks"):
    sys.path.insert(0, str(Path(workflow.source_path(f"../lib/{name}.py")).parent))
from job_summaries import log_summaries

# Millions of objects of a plan live until the end: by default Python scans them for garbage again and again, a fifth
# of the time of a plan (docs/benchmarks.md).
if workflow.is_main_process:
    gc.set_threshold(50_000, 20, 100)

try:
    CONFIG = load_config(config)
    SHEET = load_sheet(Path(CONFIG.cohort.slides), exclude=CONFIG.cohort.exclude)
    SHEET.check_evaluation(CONFIG.evaluation)
    if not keeps_model(CONFIG):
        check_weights(CONFIG)
    # Slides, annotations and given weights are tracked by content: neither path nor time of a file makes a job run again.
    FINGERPRINTS = Fingerprints.of_results(Path(CONFIG.results))
    # Jobs of a cluster, each of which parses the workflow again, need those of their own slide only.
    if workflow.is_main_process:
        annotations = [row.annotation for row in SHEET.values() if row.annotation]
        FINGERPRINTS.read(path for path in annotations if not is_remote(path))
        for warning in [*SHEET.warnings, *SHEET.check_splits(FINGERPRINTS)]:
            logger.warning(warning)
except PipelineError as error:
    raise WorkflowError(str(error))
# Skipped inside the jobs of a cluster, each of which parses the workflow again.
if workflow.is_main_process:
    validate(config, "../schemas/config.schema.json", set_default=False)

log_summaries()

# Commands run in the environment of Snakemake itself, whatever PATH the shell or the node has.
shell.prefix(f"set -euo pipefail; export PATH={quote(str(Path(sys.executable).parent))}:$PATH; ")

RESULTS = CONFIG.results.rstrip("/")
# One model for each round of training; the last one is evaluated.
MODELS = CONFIG.training.models
MODEL = MODELS[-1]
TRAINING = SHEET.of_split("train")
VALIDATION = SHEET.of_split("validation")
TEST = SHEET.of_split("test")
# Slides that are predicted to choose the operating point, and to fit the slide classifier.
CHOSEN_ON = VALIDATION if CONFIG.evaluation.uses_validation else []
FITTED_ON = TRAINING + VALIDATION if CONFIG.evaluation.slide_level.score == "forest" else []
EVALUATED_SPLITS = ("test", "train", "validation") if FITTED_ON else ("test",)
# Whether the operating point is chosen by false positives a slide.
NEEDS_DETECTIONS = CONFIG.evaluation.operating_point.rule == "false_positives_per_slide"
# Jobs fetch their inputs and upload their outputs: a bucket or node-local scratch (docs/cluster.md).
REMOTE = workflow.storage_settings.default_storage_provider is not None
if REMOTE and CONFIG.training.retrain == "frozen":
    raise WorkflowError(
        "training.retrain: frozen looks for the model in a folder, and these results lie elsewhere. "
        "Name its weights.safetensors in training.weights"
    )
FROZEN = keeps_model(CONFIG)
EXCLUDE = [f"--exclude={slide}" for slide in CONFIG.cohort.exclude]
SYNTHETIC = "--synthetic" if CONFIG.cohort.synthetic else "--no-synthetic"
IMAGENET = CONFIG.training.weights_file or "resources/inception_v3_google-0cc3c7bd.pth"


def unsigned():
    """Signature version of the S3 plugin for buckets that need no credentials."""
    from botocore import UNSIGNED

    return UNSIGNED


if any(is_remote(path) for row in SHEET.values() for path in (row.path, row.annotation or "")):

    storage slides:
        provider="s3",
        signature_version=unsigned() if CONFIG.cohort.public_buckets else None,


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",


KEEP = CONFIG.pyramid.keep
# The store for pictures of whole slides: the coarse levels alone where pyramids are temporary.
OVERVIEW = f"<results>/slides/{{slide}}/{'pyramid' if KEEP else 'overview'}.ome.zarr"


def options(stage):
    return options_json(STAGES[stage].of(CONFIG))


def tissue_options(wildcards):
    return options_json(SHEET[wildcards.slide].tissue_options(TissueRun.of(CONFIG)))


def fetched_from_bucket(path):
    """A slide or annotation as the input of a job: local ones are parameters, as moved files are the same files."""
    return [storage.slides(path)] if path and is_remote(path) else []


def source(wildcards):
    return fetched_from_bucket(SHEET[wildcards.slide].path)


def annotation(wildcards):
    return fetched_from_bucket(SHEET[wildcards.slide].annotation)


def fingerprint(column):
    """Params function: the fingerprint of a slide's file; of one in a bucket none, which Snakemake tracks."""

    def of_slide(wildcards):
        path = getattr(SHEET[wildcards.slide], column)
        return None if path is None or is_remote(path) else FINGERPRINTS[path]

    return of_slide


def source_path(wildcards, input):
    return [*input.source] or SHEET[wildcards.slide].path


def annotation_flags(wildcards, input):
    local = SHEET[wildcards.slide].annotation
    return [f"--annotation={path}" for path in [*input.annotation] or filter(None, [local])]


def sheet_path(wildcards, input):
    return CONFIG.cohort.slides


def truth_flags(wildcards):
    row = SHEET[wildcards.slide]
    flags = ["--exhaustive" if row.exhaustive else "--no-exhaustive"]
    given = ("label", "annotation_origin")
    if row.annotation:
        given += ("tissue_method", "tissue_threshold")
    values = {name.replace("_", "-"): getattr(row, name) for name in given}
    return flags + [f"--{name}={value}" for name, value in values.items() if value is not None]


def folder_of(files):
    return str(Path(files[0]).parent) if files else "."


def slides_folder(file):
    """The folder of all slides, of a file in the folder of one slide."""
    return str(Path(file).parent.parent)


def fetched(files):
    """Files that a job reads and whose content a manifest stands for.

    They are inputs only where a job has to fetch them: Snakemake searches all inputs of a job for each file that other
    jobs take from it, so that a plan would be quadratic in the number of slides.
    """
    return ancient(files) if REMOTE else []


def folder_of_stage(stage):
    """Params function: the folder of a stage's files, or of their fetched copies."""

    def folder(wildcards, input):
        return folder_of(input.get(stage)) if REMOTE else f"{RESULTS}/{stage}/{wildcards.model}"

    return folder


def training_receipts(wildcards):
    try:
        SHEET.check_training()
    except PipelineError as error:
        raise WorkflowError(str(error))
    return expand("<results>/slides/{slide}/patches.json", slide=TRAINING)


def earlier(wildcards):
    """The models of the earlier rounds of training."""
    return MODELS[: MODELS.index(wildcards.model)]


def negatives(suffix):
    """Input function: files of all training slides in the earlier rounds."""

    def files(wildcards):
        folders = [f"{RESULTS}/negatives/{model}" for model in earlier(wildcards)]
        return [f"{folder}/{slide}{suffix}" for folder in folders for slide in TRAINING]

    return files


def negatives_folders(wildcards, input):
    if REMOTE:
        return list(dict.fromkeys(str(Path(file).parent) for file in input.negatives))
    return [f"{RESULTS}/negatives/{model}" for model in earlier(wildcards)]


def training_flags(wildcards, input):
    """Patterns of the receipts that the training depends on, one a split and folder."""
    slides = slides_folder(input.training[0])
    flags = [f"--train={slides}/{{slide}}/patches.json"]
    if input.get("validation"):
        flags.append(f"--validation={slides}/{{slide}}/patches.json")
    folders = dict.fromkeys(str(Path(file).parent) for file in input.negatives)
    return flags + [f"--train={folder}/{{slide}}.json" for folder in folders]


def calibration_flags(wildcards, input):
    stages = [stage for stage in ("scores", "detections") if input.get(stage)]
    return [f"--validation={folder_of(input.get(stage))}/{{slide}}.json" for stage in stages]


def evaluation_flags(wildcards, input):
    flags = [
        f"--test={folder_of(input.get(stage))}/{{slide}}.json"
        for stage in ("scores", "confusion", "detections")
    ]
    if input.get("fitted_on"):
        flags += [f"--{split}={folder_of(input.scores)}/{{slide}}.json" for split in ("train", "validation")]
    return flags


def imagenet_weights(wildcards):
    needed = CONFIG.training.start == "imagenet" and not earlier(wildcards)
    # The stage accepts no other content than that of the published file, so its time does not count.
    downloaded = IMAGENET if CONFIG.training.weights_file is None else local(IMAGENET)
    return [ancient(downloaded)] if needed else []


def given_weights_fingerprint(model):
    """The fingerprint of the weights that the config gives for a model, which is that of the first round."""
    given = CONFIG.training.given_weights
    return None if given is None or model != MODELS[0] else FINGERPRINTS[given]


def weights_fingerprint(wildcards):
    return given_weights_fingerprint(wildcards.model)


def given_weights(wildcards, input):
    return CONFIG.training.given_weights


def start_flags(wildcards, input):
    start = CONFIG.training.given_weights
    weights = input.go_on_from or ([start] if start else [])
    return [f"--imagenet={path}" for path in input.imagenet] + [f"--go-on-from={path}" for path in weights]


def weights_of_the_round_before(wildcards):
    return [f"{RESULTS}/model/{model}/weights.safetensors" for model in earlier(wildcards)[-1:]]


def patch_slides():
    """Slides that patches are drawn from."""
    return [] if CONFIG.training.weights or FROZEN else TRAINING + VALIDATION


def used_slides():
    """Slides with any results after the tissue mask."""
    return list(dict.fromkeys(patch_slides() + CHOSEN_ON + FITTED_ON + TEST))


def slide_receipts():
    """The receipts of all slides: `rule all` stands for each of them, so that none can go missing unnoticed."""
    return [
        *expand("<results>/slides/{slide}/{stage}.json", slide=SHEET, stage=["pyramid", "tissue"]),
        *expand("<results>/slides/{slide}/truth.json", slide=used_slides()),
        *expand("<results>/slides/{slide}/patches.json", slide=patch_slides()),
        *expand(f"<results>/heatmaps/{MODEL}/{{slide}}.json", slide=CHOSEN_ON + FITTED_ON + TEST),
        *expand(f"<results>/scores/{MODEL}/{{slide}}.json", slide=CHOSEN_ON + FITTED_ON + TEST),
        *expand(f"<results>/confusion/{MODEL}/{{slide}}.json", slide=TEST),
    ]


def of_test_slides(pattern):
    return expand(pattern, slide=TEST, allow_missing=True)


def of_chosen_on(pattern):
    return expand(pattern, slide=CHOSEN_ON, allow_missing=True)


def of_fitted_on(pattern):
    return expand(pattern, slide=FITTED_ON, allow_missing=True)


def excluded(*splits):
    """Flags for the excluded slides of some splits: a job must not run again when others are excluded."""
    return [f"--exclude={row.slide}" for row in SHEET.excluded.values() if row.split in splits]


def calibrate_flags():
    if not CHOSEN_ON:
        return []
    return [f"--rows={SHEET.digest('validation')}", *excluded("validation")]
