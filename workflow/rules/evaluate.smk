# Figures over all test slides, and the report.
from shlex import quote

EXCLUDE = [f"--exclude={slide}" for slide in CONFIG.cohort.exclude]


def of_test_slides(pattern):
    return expand(RESULTS + pattern, slide=TEST, allow_missing=True)


rule evaluate:
    input:
        of_test_slides("/confusion/{model}/{slide}.json"),
        of_test_slides("/detections/{model}/{slide}.json"),
        ancient(of_test_slides("/confusion/{model}/{slide}.scores.parquet")),
    output:
        RESULTS + "/evaluation/{model}/metrics.json",
        multiext(RESULTS + "/evaluation/{model}/", "roc.csv", "pr.csv", "froc.csv", "slides.csv"),
        report(
            multiext(RESULTS + "/evaluation/{model}/", "roc.png", "pr.png", "froc.png", "confusion.png"),
            category="Evaluation",
            labels=lambda wildcards, output=None: {"model": wildcards.model},
        ),
    log:
        "logs/" + RESULTS + "/evaluate/{model}.log",
    benchmark:
        "logs/" + RESULTS + "/evaluate/{model}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        options=options("evaluate"),
        sheet=CONFIG.cohort.slides,
        rows=SHEET.digest(),
        exclude=EXCLUDE,
        confusion=RESULTS + "/confusion/{model}",
        detections=RESULTS + "/detections/{model}",
        folder=RESULTS + "/evaluation/{model}",
    shell:
        "{WSI} evaluate --sheet {params.sheet:q} --rows {params.rows} {params.exclude:q}"
        " --confusion {params.confusion:q} --detections {params.detections:q} --output {params.folder:q}"
        " --options {params.options:q} > {log:q} 2>&1"


PARTIAL_EVALUATION = (
    (
        f"{WSI} evaluate --allow-missing --sheet {quote(CONFIG.cohort.slides)} {' '.join(map(quote, EXCLUDE))}"
        f" --confusion {quote(f'{RESULTS}/confusion/{MODEL}')} --detections {quote(f'{RESULTS}/detections/{MODEL}')}"
        f" --output {quote(f'{RESULTS}/evaluation/{MODEL}/partial')} --options {quote(options('evaluate'))}"
    )
    .replace("{", "{{")
    .replace("}", "}}")
)


rule report:
    input:
        of_test_slides("/confusion/" + MODEL + "/{slide}.json"),
        metrics=f"{RESULTS}/evaluation/{MODEL}/metrics.json",
    output:
        RESULTS + "/report.html",
    log:
        "logs/" + RESULTS + "/report.log",
    benchmark:
        "logs/" + RESULTS + "/report.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        options=options("report"),
        slides=RESULTS + "/slides",
        heatmaps=f"{RESULTS}/heatmaps/{MODEL}",
        confusion=f"{RESULTS}/confusion/{MODEL}",
        evaluation=f"{RESULTS}/evaluation/{MODEL}",
    shell:
        "{WSI} report --slides {params.slides:q} --heatmaps {params.heatmaps:q} --confusion {params.confusion:q}"
        " --evaluation {params.evaluation:q} --output {output:q} --options {params.options:q} > {log:q} 2>&1"
