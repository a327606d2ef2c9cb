# Config and sheet, checked before any job starts, and what the rules take from them.
import sys
from pathlib import Path

from wsi_pipeline.config import load_config, options_json
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.sheet import load_sheet

try:
    CONFIG = load_config(config)
    SHEET = load_sheet(Path(CONFIG.cohort.slides), exclude=CONFIG.cohort.exclude)
except PipelineError as error:
    raise WorkflowError(str(error))

RESULTS = CONFIG.results
MODEL = CONFIG.training.model
TRAINING = SHEET.of_split("train")
VALIDATION = SHEET.of_split("validation")
TEST = SHEET.of_split("test")
# The interpreter that runs Snakemake runs the stages too, whatever the PATH says.
WSI = f"{sys.executable} -m wsi_pipeline"


wildcard_constraints:
    slide=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    model=r"[A-Za-z0-9][A-Za-z0-9._-]*",


def options(stage):
    return options_json(stage, CONFIG.stage_options(stage))


def tissue_options(wildcards):
    return options_json("tissue", SHEET[wildcards.slide].tissue_options(CONFIG.tissue))
