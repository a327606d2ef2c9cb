# Before the jobs and after a failure: checks of the results, the record of the run, the partial evaluation.
import json
from shlex import join

from wsi_pipeline.evaluation.outdated_results import Expected, check_results
from wsi_pipeline.io.layout import Layout
from wsi_pipeline.provenance.run_record import check_clock, read_runs, record_run
from wsi_pipeline.provenance.snakemake_metadata import has_record
from slurm_checks import cancel_leftovers, check_slurm

# The folder of this workflow, also where another workflow uses it as a module.
WORKFLOW = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent


def expected_results():
    """What the evaluation checks receipts for: the options of stages, and the splits that are predicted."""
    stages = [
        "convert",
        "tissue",
        "truth",
        "heatmap",
        "scores",
        "detect",
        "confusion",
        "calibrate",
        "evaluate",
    ]
    if patch_slides():
        stages += ["patches", "train"]
    return {
        "options": {stage: json.loads(options(stage)) for stage in stages},
        "predicted_splits": ["test", *CONFIG.evaluation.extra_predicted_splits],
        "weights_fingerprint": None if FROZEN else given_weights_fingerprint(MODEL),
    }


def expected_flags():
    return ["--results", RESULTS, "--expected", json.dumps(expected_results(), sort_keys=True)]


def check_without_records():
    """Snakemake notices no change of options where its own records are lost: check the results themselves."""
    layout = Layout(Path(RESULTS), MODEL)
    metrics = f"{RESULTS}/evaluation/{MODEL}/metrics.json"
    if Path(metrics).is_file() and not REMOTE and not has_record(Path(".snakemake"), metrics):
        try:
            check_results(
                Expected(SHEET, layout, fingerprints=FINGERPRINTS, **expected_results()), before_jobs=True
            )
        except PipelineError as error:
            raise WorkflowError(f"Snakemake's records of these results (.snakemake) are missing, and {error}")


def partial_evaluation():
    """After a failure, evaluate the slides that are complete, in a folder of their own and marked incomplete."""
    if REMOTE:
        return
    folder = f"{RESULTS}/evaluation/{MODEL}/partial"
    command = ["wsi-pipeline", "evaluate", "--allow-missing", *EXCLUDE]
    command += ["--sheet", CONFIG.cohort.slides, "--output", folder, "--options", options("evaluate")]
    for stage in ("scores", "confusion", "detections"):
        command += [f"--{stage}", f"{RESULTS}/{stage}/{MODEL}"]
    command += ["--calibration", f"{RESULTS}/calibration/{MODEL}.json"]
    # A slide whose results are those of an earlier run counts as missing.
    command += expected_flags()
    shell(join(command).replace("{", "{{").replace("}", "}}"))


def check_finished_results():
    """A job that is cancelled removes the files of its step, also those that this run was planned with as finished."""
    needed = set(workflow.dag.needrun_jobs())
    finished = (job for job in workflow.dag.jobs if job not in needed)
    lost = sorted(
        file for job in finished for file in job.output if file.endswith(".json") and not Path(file).exists()
    )
    if lost and not REMOTE:
        raise WorkflowError(
            f"{lost[0]} (and {len(lost) - 1} more files) went with the cancelled jobs after this run was planned. "
            "Start it again"
        )


def before_jobs():
    """Check clock and cluster before hundreds of jobs fail on them, and record the run beside its results."""
    slurm = workflow.executor_plugin.name == "slurm"
    try:
        runs = read_runs(Path(RESULTS))
        check_clock(runs)
        if slurm:
            jobs = {job.rule.name: job for job in workflow.dag.needrun_jobs() if not job.is_local}
            partitions = {rule: job.resources.get("slurm_partition") for rule, job in jobs.items()}
            check_slurm({rule: name for rule, name in partitions.items() if isinstance(name, str)})
            if cancel_leftovers(runs):
                check_finished_results()
        # The plugin gives all jobs of a run this name in SLURM, and exposes it nowhere else.
        name = workflow.scheduler._executor.run_uuid if slurm else None
        FINGERPRINTS.save()
        record_run(Path(RESULTS), CONFIG, WORKFLOW, name)
    except PipelineError as error:
        raise WorkflowError(str(error))


if workflow.is_main_process:
    check_without_records()
