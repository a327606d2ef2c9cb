# Predictions of the slides that are evaluated or calibrated on, and their errors.


# Predicts several slides with a model that is loaded once. Checkpoints keep the predictions of each slide, so that
# a killed job goes on.
rule predict:
    input:
        of_batch("pyramid.json"),
        of_batch("tissue.json"),
        model="<results>/model/{model}/model.json",
        weights=ancient("<results>/model/{model}/weights.safetensors"),
        pyramids=ancient(of_batch("pyramid.ome.zarr")),
        tissue=ancient(of_batch("tissue.ome.zarr")),
    output:
        predictions=directory("<results>/predictions/{model}/{batch}"),
        receipt="<results>/predictions/{model}/{batch}.json",
    log:
        "<logs>/predict/{model}/{batch}.log",
    benchmark:
        "<logs>/predict/{model}/{batch}.tsv"
    threads: 8
    resources:
        mem_mb=4000,
        runtime=lambda wildcards: 240 * len(batch_slides(wildcards)),
        gpu=1,
    params:
        options=options("predict"),
        slides=lambda wildcards, input: slides_folder(input.pyramids[0]),
        slide=lambda wildcards: [f"--slide={slide}" for slide in batch_slides(wildcards)],
        checkpoints=f"{RESULTS}/checkpoints/predictions/{{model}}",
    shell:
        "wsi-pipeline predict --slides {params.slides:q} {params.slide:q} --weights {input.weights:q}"
        " --model {input.model:q} --output {output.predictions:q} --receipt {output.receipt:q}"
        " --checkpoints {params.checkpoints:q} --options {params.options:q} --threads {threads}"
        " > {log:q} 2>&1"


rule heatmap:
    input:
        "<results>/slides/{slide}/pyramid.json",
        "<results>/slides/{slide}/tissue.json",
        predictions=batch_of_slide,
        model="<results>/model/{model}/model.json",
        weights=ancient("<results>/model/{model}/weights.safetensors"),
        pyramid=ancient("<results>/slides/{slide}/pyramid.ome.zarr"),
        tissue=ancient("<results>/slides/{slide}/tissue.ome.zarr"),
    output:
        store=directory("<results>/heatmaps/{model}/{slide}.ome.zarr"),
        receipt="<results>/heatmaps/{model}/{slide}.json",
    log:
        "<logs>/heatmap/{model}/{slide}.log",
    benchmark:
        "<logs>/heatmap/{model}/{slide}.tsv"
    # Results do not depend on the number of threads.
    threads: lambda wildcards, input: 1 if input.predictions else 8
    resources:
        mem_mb=4000,
        runtime=240,
        gpu=lambda wildcards, input: 0 if input.predictions else 1,
    params:
        options=options("heatmap"),
        slides=lambda wildcards, input: slides_folder(input.pyramid),
        predictions=lambda wildcards, input: [f"--predictions={folder}" for folder in input.predictions],
        checkpoints=f"{RESULTS}/checkpoints/predictions/{{model}}",
        folder=lambda wildcards, output: folder_of([output.receipt]),
    shell:
        "wsi-pipeline heatmap --slides {params.slides:q} --slide {wildcards.slide:q} --weights {input.weights:q}"
        " --model {input.model:q} {params.predictions:q} --checkpoints {params.checkpoints:q}"
        " --output {params.folder:q} --options {params.options:q} --threads {threads} > {log:q} 2>&1"


rule export:
    input:
        receipt="<results>/heatmaps/{model}/{slide}.json",
        heatmap=ancient("<results>/heatmaps/{model}/{slide}.ome.zarr"),
    output:
        "<results>/heatmaps/{model}/{slide}.tif",
    log:
        "<logs>/export/{model}/{slide}.log",
    benchmark:
        "<logs>/export/{model}/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        step_version=STAGES["export"].step_version,
    shell:
        "wsi-pipeline export --heatmap {input.heatmap:q} --heatmap-receipt {input.receipt:q} --tiff {output:q}"
        " > {log:q} 2>&1"


rule confusion:
    input:
        "<results>/slides/{slide}/pyramid.json",
        truth_receipt="<results>/slides/{slide}/truth.json",
        calibration="<results>/calibration/{model}.json",
        heatmap_receipt="<results>/heatmaps/{model}/{slide}.json",
        heatmap=ancient("<results>/heatmaps/{model}/{slide}.ome.zarr"),
        pyramid=ancient(OVERVIEW),
        truth=ancient("<results>/slides/{slide}/truth.ome.zarr"),
    output:
        "<results>/confusion/{model}/{slide}.pdf",
        store=directory("<results>/confusion/{model}/{slide}.ome.zarr"),
        receipt="<results>/confusion/{model}/{slide}.json",
        picture=report(
            "<results>/confusion/{model}/{slide}.png",
            category="Slides",
            subcategory="{slide}",
            labels={"slide": "{slide}", "figure": "truth, heatmap and errors"},
        ),
        geojson="<results>/confusion/{model}/{slide}.geojson",
    log:
        "<logs>/confusion/{model}/{slide}.log",
    benchmark:
        "<logs>/confusion/{model}/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=options("confusion"),
        synthetic=SYNTHETIC,
    shell:
        "wsi-pipeline confusion --pyramid {input.pyramid:q} --truth {input.truth:q}"
        " --truth-receipt {input.truth_receipt:q} --heatmap {input.heatmap:q} --heatmap-receipt {input.heatmap_receipt:q}"
        " --calibration {input.calibration:q} --slide {wildcards.slide:q} --store {output.store:q} --receipt {output.receipt:q}"
        " --picture {output.picture:q} --geojson {output.geojson:q} --options {params.options:q}"
        " {params.synthetic} > {log:q} 2>&1"


# Two stages in one job: each is shorter than the start of a job on a cluster.
rule scores:
    input:
        truth_receipt="<results>/slides/{slide}/truth.json",
        heatmap_receipt="<results>/heatmaps/{model}/{slide}.json",
        heatmap=ancient("<results>/heatmaps/{model}/{slide}.ome.zarr"),
        truth=ancient("<results>/slides/{slide}/truth.ome.zarr"),
    output:
        counts="<results>/scores/{model}/{slide}.parquet",
        receipt="<results>/scores/{model}/{slide}.json",
        detections="<results>/detections/{model}/{slide}.csv",
        geojson="<results>/detections/{model}/{slide}.geojson",
        detections_receipt="<results>/detections/{model}/{slide}.json",
    log:
        "<logs>/scores/{model}/{slide}.log",
    benchmark:
        "<logs>/scores/{model}/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=options("scores"),
        detect_options=options("detect"),
    shell:
        "wsi-pipeline scores --truth {input.truth:q} --truth-receipt {input.truth_receipt:q}"
        " --heatmap {input.heatmap:q} --heatmap-receipt {input.heatmap_receipt:q} --slide {wildcards.slide:q}"
        " --counts {output.counts:q} --receipt {output.receipt:q} --options {params.options:q} > {log:q} 2>&1"
        " && wsi-pipeline detect --truth {input.truth:q} --truth-receipt {input.truth_receipt:q}"
        " --heatmap {input.heatmap:q} --heatmap-receipt {input.heatmap_receipt:q} --slide {wildcards.slide:q}"
        " --detections {output.detections:q} --geojson {output.geojson:q} --receipt {output.detections_receipt:q}"
        " --options {params.detect_options:q} >> {log:q} 2>&1"
