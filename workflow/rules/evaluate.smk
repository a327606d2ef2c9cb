# Calibration on the validation slides, metrics over all test slides, and the report.

EVALUATION_FIGURES = ("roc", "pr", "froc", "reliability", "confusion", "cohort")


localrules:
    calibration_manifest,
    evaluation_manifest,


rule calibration_manifest:
    input:
        scores=of_chosen_on("<results>/scores/{model}/{slide}.json"),
        detections=of_chosen_on("<results>/detections/{model}/{slide}.json") if NEEDS_DETECTIONS else [],
    output:
        "<results>/manifests/{model}/calibration.tsv",
    log:
        "<logs>/calibration_manifest/{model}.log",
    params:
        step_version=STAGES["manifest"].step_version,
        sheet=sheet_path,
        flags=calibrate_flags(),
        receipts=calibration_flags,
    shell:
        "wsi-pipeline manifest {output:q} --sheet {params.sheet:q} {params.flags:q} {params.receipts:q}"
        " > {log:q} 2>&1"


rule calibrate:
    input:
        manifest="<results>/manifests/{model}/calibration.tsv" if CHOSEN_ON else [],
        scores=fetched(
            of_chosen_on("<results>/scores/{model}/{slide}.parquet")
            + of_chosen_on("<results>/scores/{model}/{slide}.json")
        ),
        detections=fetched(
            of_chosen_on("<results>/detections/{model}/{slide}.json") if NEEDS_DETECTIONS else []
        ),
    output:
        "<results>/calibration/{model}.json",
    log:
        "<logs>/calibrate/{model}.log",
    benchmark:
        "<logs>/calibrate/{model}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=options("calibrate"),
        sheet=sheet_path,
        flags=calibrate_flags(),
        scores=folder_of_stage("scores"),
        detections=folder_of_stage("detections"),
    shell:
        "wsi-pipeline calibrate --sheet {params.sheet:q} {params.flags:q}"
        " --scores {params.scores:q} --detections {params.detections:q} --receipt {output:q}"
        " --options {params.options:q} > {log:q} 2>&1"


rule evaluation_manifest:
    input:
        fitted_on=of_fitted_on("<results>/scores/{model}/{slide}.json"),
        scores=of_test_slides("<results>/scores/{model}/{slide}.json"),
        confusion=of_test_slides("<results>/confusion/{model}/{slide}.json"),
        detections=of_test_slides("<results>/detections/{model}/{slide}.json"),
    output:
        "<results>/manifests/{model}/evaluation.tsv",
    log:
        "<logs>/evaluation_manifest/{model}.log",
    params:
        step_version=STAGES["manifest"].step_version,
        sheet=sheet_path,
        rows=SHEET.digest(*EVALUATED_SPLITS),
        exclude=excluded(*EVALUATED_SPLITS),
        receipts=evaluation_flags,
    shell:
        "wsi-pipeline manifest {output:q} --sheet {params.sheet:q} --rows {params.rows} {params.exclude:q}"
        " {params.receipts:q} > {log:q} 2>&1"


rule evaluate:
    input:
        fetched(of_test_slides("<results>/scores/{model}/{slide}.parquet")),
        manifest="<results>/manifests/{model}/evaluation.tsv",
        calibration="<results>/calibration/{model}.json",
        scores=fetched(
            of_test_slides("<results>/scores/{model}/{slide}.json")
            + of_fitted_on("<results>/scores/{model}/{slide}.json")
        ),
        confusion=fetched(of_test_slides("<results>/confusion/{model}/{slide}.json")),
        detections=fetched(of_test_slides("<results>/detections/{model}/{slide}.json")),
    output:
        multiext(
            "<results>/evaluation/{model}/",
            "roc.csv",
            "roc_band.csv",
            "pr.csv",
            "froc.csv",
            "reliability.csv",
            "slides.csv",
            *(f"{figure}.pdf" for figure in EVALUATION_FIGURES),
        ),
        report(
            multiext("<results>/evaluation/{model}/", *(f"{figure}.png" for figure in EVALUATION_FIGURES)),
            category="Evaluation",
            labels=lambda wildcards: {"model": wildcards.model},
        ),
        metrics="<results>/evaluation/{model}/metrics.json",
    log:
        "<logs>/evaluate/{model}.log",
    benchmark:
        "<logs>/evaluate/{model}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        options=options("evaluate"),
        sheet=sheet_path,
        rows=SHEET.digest(),
        exclude=EXCLUDE,
        scores=folder_of_stage("scores"),
        confusion=folder_of_stage("confusion"),
        detections=folder_of_stage("detections"),
        # Files that other jobs have uploaded cannot be checked here.
        results=[] if REMOTE else expected_flags(),
        folder=lambda wildcards, output: folder_of([output.metrics]),
    shell:
        "wsi-pipeline evaluate --sheet {params.sheet:q} --rows {params.rows} {params.exclude:q}"
        " --scores {params.scores:q} --confusion {params.confusion:q} --detections {params.detections:q}"
        " --calibration {input.calibration:q} --output {params.folder:q} {params.results:q}"
        " --options {params.options:q} > {log:q} 2>&1"


rule report:
    input:
        ancient(
            expand(
                [
                    OVERVIEW,
                    "<results>/slides/{slide}/tissue.ome.zarr",
                    "<results>/slides/{slide}/truth.ome.zarr",
                ],
                slide=TEST,
            )
        ),
        ancient(
            expand(
                "<results>/{stage}/{model}/{slide}.ome.zarr",
                stage=["heatmaps", "confusion"],
                model=MODEL,
                slide=TEST,
            )
        ),
        # Receipts that change reach the report through the metrics.
        fetched(slide_receipts()),
        fetched(of_test_slides(f"<results>/detections/{MODEL}/{{slide}}.json")),
        f"<results>/model/{MODEL}/model.json",
        f"<results>/evaluation/{MODEL}/metrics.json",
        ancient(expand(f"<results>/scores/{MODEL}/{{slide}}.parquet", slide=TEST)),
        ancient(expand(f"<results>/detections/{MODEL}/{{slide}}.csv", slide=TEST)),
        ancient(
            multiext(
                f"<results>/evaluation/{MODEL}/",
                "slides.csv",
                "roc.csv",
                "roc_band.csv",
                "pr.csv",
                "froc.csv",
            )
        ),
    output:
        page="<results>/report.html",
        pages=directory("<results>/report"),
    log:
        "<logs>/report.log",
    benchmark:
        "<logs>/report.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        options=options("report"),
        sheet=sheet_path,
        exclude=EXCLUDE,
        results=lambda wildcards, output: folder_of([output.page]),
        model=MODEL,
    shell:
        "wsi-pipeline report --sheet {params.sheet:q} {params.exclude:q} --results {params.results:q}"
        " --model {params.model:q} --output {output.page:q} --options {params.options:q} > {log:q} 2>&1"
