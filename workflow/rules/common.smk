# Config and sheet, checked before any job starts, and what the rules take from them.
import sys
from functools import cache
from pathlib import Path
from shlex import join, quote

from snakemake.utils import validate

from wsi_pipeline.config import STAGES, TissueRun
from wsi_pipeline.config.loading import load_config, options_json
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.provenance.run_record import check_clock, read_runs, record_run
from wsi_pipeline.cohort.sheet import is_remote, load_sheet

# Modules of the workflow that know Snakemake or SLURM: the package knows neither.
sys.path.insert(0, str(Path(workflow.current_basedir.get_path_or_uri(secret_free=False)).parent / "lib"))
from job_summaries import say_findings
from slurm_checks import cancel_leftovers, check_slurm

try:
    CONFIG = load_config(config)
    SHEET = load_sheet(Path(CONFIG.cohort.slides), exclude=CONFIG.cohort.exclude)
    SHEET.check_evaluation(CONFIG.evaluation)
except PipelineError as error:
    raise WorkflowError(str(error))
# Not again in each job of a cluster, which starts Snakemake twice.
if workflow.is_main_process:
    validate(config, "../schemas/config.schema.json", set_default=False)

say_findings()

# Stages run in the environment that runs Snakemake, whatever the PATH of the shell or of a cluster's node says.
shell.prefix(f"set -euo pipefail; export PATH={quote(str(Path(sys.executable).parent))}:$PATH; ")

RESULTS = CONFIG.results.rstrip("/")
# The models of all rounds of training; the last one is what predicts and is judged.
MODELS = CONFIG.training.models
MODEL = MODELS[-1]
TRAINING = SHEET.of_split("train")
VALIDATION = SHEET.of_split("validation")
TEST = SHEET.of_split("test")
# Slides that are predicted for what is chosen or fitted on them.
CHOSEN_ON = VALIDATION if CONFIG.evaluation.uses_validation else []
FITTED_ON = TRAINING + VALIDATION if CONFIG.evaluation.slide_level.score == "forest" else []
# Results may lie in a bucket: see docs/cluster.md.
REMOTE = workflow.storage_settings.default_storage_provider is not None
if REMOTE and CONFIG.training.retrain == "frozen":
    raise WorkflowError(
        "training.retrain: frozen looks for the model in a folder, and these results lie elsewhere. "
        "Name its weights.safetensors in training.weights"
    )
# The model that is there is taken as it is.
FROZEN = CONFIG.training.retrain == "frozen" and Path(RESULTS, "model", MODEL, "model.json").is_file()
EXCLUDE = [f"--exclude={slide}" for slide in CONFIG.cohort.exclude]
SYNTHETIC = "--synthetic" if CONFIG.cohort.synthetic else "--no-synthetic"
IMAGENET = CONFIG.training.weights_file or "resources/inception_v3_google-0cc3c7bd.pth"


def unsigned():
    """What the S3 plugin takes for a bucket that needs no credentials."""
    from botocore import UNSIGNED

    return UNSIGNED


if any(is_remote(path) for row in SHEET.values() for path in (row.path, row.annotation or "")):

    storage slides:
        provider="s3",
        signature_version=unsigned() if CONFIG.cohort.public_buckets else None,


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",


wildcard_constraints:
    slide=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    model=r"[A-Za-z0-9][A-Za-z0-9._-]*",


def located(path):
    return storage.slides(path) if is_remote(path) else local(path)


KEEP = CONFIG.pyramid.keep
# Enough for pictures of the whole slide.
OVERVIEW = f"<results>/slides/{{slide}}/{'pyramid' if KEEP else 'overview'}.ome.zarr"


def options(stage):
    return options_json(STAGES[stage].of(CONFIG))


def tissue_options(wildcards):
    return options_json(SHEET[wildcards.slide].tissue_options(TissueRun.of(CONFIG)))


def source(wildcards):
    return located(SHEET[wildcards.slide].path)


def annotation(wildcards):
    path = SHEET[wildcards.slide].annotation
    return [located(path)] if path else []


def truth_flags(wildcards, input):
    row = SHEET[wildcards.slide]
    flags = ["--exhaustive" if row.exhaustive else "--no-exhaustive"]
    if row.label:
        flags.append(f"--label={row.label}")
    flags += [f"--annotation={path}" for path in input.annotation]
    return flags


def training_receipts(wildcards):
    try:
        SHEET.check_training()
    except PipelineError as error:
        raise WorkflowError(str(error))
    return expand("<results>/slides/{slide}/patches.json", slide=TRAINING)


def earlier(wildcards):
    """The models of the rounds before."""
    return MODELS[: MODELS.index(wildcards.model)]


def start_files(wildcards):
    start = CONFIG.training.start
    if earlier(wildcards):
        return [f"{RESULTS}/model/{earlier(wildcards)[-1]}/weights.safetensors"]
    downloaded = IMAGENET if CONFIG.training.weights_file is None else local(IMAGENET)
    return {"random": [], "imagenet": [downloaded]}.get(start, [local(start)])


def start_flags(wildcards, input):
    """Weights to start from where the options do not name them."""
    flag = (
        "--go-on-from"
        if earlier(wildcards)
        else "--imagenet" if CONFIG.training.start == "imagenet" else None
    )
    return [f"{flag}={path}" for path in input.start if flag]


def negatives(suffix):
    """Of all training slides and earlier rounds."""

    def files(wildcards):
        folders = [f"{RESULTS}/negatives/{model}" for model in earlier(wildcards)]
        return [f"{folder}/{slide}{suffix}" for folder in folders for slide in TRAINING]

    return files


def taken_model_json(wildcards):
    beside = Path(CONFIG.training.weights).with_name("model.json")
    return [local(str(beside))] if beside.is_file() else []


def folder_of(files):
    return str(Path(files[0]).parent) if files else "."


@cache
def batches(model):
    """Number of the job that predicts a slide, for the slides of a model in the order of the sheet."""
    # Those of a round but the last are what it is trained on.
    names = set(CHOSEN_ON + FITTED_ON + TEST if model == MODEL else TRAINING)
    slides = [slide for slide in SHEET if slide in names]
    return {slide: number // CONFIG.heatmap.slides_per_job for number, slide in enumerate(slides)}


def batch_slides(wildcards):
    numbers = batches(wildcards.model)
    return [slide for slide in numbers if numbers[slide] == int(wildcards.batch)]


def of_batch(name):
    """A file of each slide of a batch."""
    return lambda wildcards: expand(f"{RESULTS}/slides/{{slide}}/{name}", slide=batch_slides(wildcards))


def batch_of_slide(wildcards):
    """What says that the network has been asked about a slide, where that is done for several at a time."""
    if CONFIG.heatmap.slides_per_job == 1 or wildcards.slide not in batches(wildcards.model):
        return []
    number = batches(wildcards.model)[wildcards.slide]
    return [f"{RESULTS}/heatmaps/{wildcards.model}/batches/{number:04d}.json"]


def slides_folder(pyramid):
    """The folder of all slides."""
    return str(Path(pyramid).parent.parent)


def patch_slides():
    """Slides that patches are drawn from."""
    return [] if CONFIG.training.weights or FROZEN else TRAINING + VALIDATION


def used_slides():
    """Slides that anything is made of."""
    return list(dict.fromkeys(patch_slides() + CHOSEN_ON + FITTED_ON + TEST))


def unused_slides():
    used = set(used_slides())
    return [slide for slide in SHEET if slide not in used]


def of_test_slides(pattern):
    return expand(pattern, slide=TEST, allow_missing=True)


def of_chosen_on(pattern):
    return expand(pattern, slide=CHOSEN_ON, allow_missing=True)


def excluded(*splits):
    return [f"--exclude={row.slide}" for row in SHEET.excluded.values() if row.split in splits]


def calibrate_flags():
    """Those of the sheet's rows that it looks at: others must not make it run again."""
    if not CHOSEN_ON:
        return []
    return [f"--rows={SHEET.digest('validation')}", *excluded("validation")]


def partial_evaluation():
    """What could be finished is evaluated all the same, apart from the results and marked incomplete."""
    if REMOTE:
        return
    folder = f"{RESULTS}/evaluation/{MODEL}/partial"
    command = ["wsi-pipeline", "evaluate", "--allow-missing", *EXCLUDE]
    command += ["--sheet", CONFIG.cohort.slides, "--output", folder, "--options", options("evaluate")]
    for stage in ("scores", "confusion", "detections"):
        command += [f"--{stage}", f"{RESULTS}/{stage}/{MODEL}"]
    command += ["--calibration", f"{RESULTS}/calibration/{MODEL}.json"]
    shell(join(command).replace("{", "{{").replace("}", "}}"))


def before_jobs():
    """A cluster is looked at before hundreds of jobs fail on it; what is asked for is kept beside what comes of it."""
    slurm = workflow.executor_plugin.name == "slurm"
    try:
        runs = read_runs(Path(RESULTS))
        check_clock(runs)
        if slurm:
            jobs = {job.rule.name: job for job in workflow.dag.needrun_jobs() if not job.is_local}
            partitions = {rule: job.resources.get("slurm_partition") for rule, job in jobs.items()}
            check_slurm({rule: name for rule, name in partitions.items() if isinstance(name, str)})
            cancel_leftovers(runs)
        # The plugin gives all jobs of a run one name, and says it nowhere else.
        name = workflow.scheduler._executor.run_uuid if slurm else None
        record_run(Path(RESULTS), CONFIG, Path(workflow.main_snakefile).parent, name)
    except PipelineError as error:
        raise WorkflowError(str(error))
