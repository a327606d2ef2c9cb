# Prediction of each test slide, and what is right and wrong with it.


rule heatmap:
    input:
        RESULTS + "/slides/{slide}/pyramid.json",
        RESULTS + "/slides/{slide}/tissue.json",
        model=RESULTS + "/model/{model}/model.json",
        weights=ancient(RESULTS + "/model/{model}/weights.safetensors"),
        pyramid=ancient(RESULTS + "/slides/{slide}/pyramid.ome.zarr"),
        tissue=ancient(RESULTS + "/slides/{slide}/tissue.ome.zarr"),
    output:
        store=directory(RESULTS + "/heatmaps/{model}/{slide}.ome.zarr"),
        receipt=RESULTS + "/heatmaps/{model}/{slide}.json",
    log:
        "logs/" + RESULTS + "/heatmap/{model}/{slide}.log",
    benchmark:
        "logs/" + RESULTS + "/heatmap/{model}/{slide}.tsv"
    threads: CONFIG.heatmap.cpu_threads
    resources:
        mem_mb=4000,
        runtime=240,
        gpu=1,
    params:
        options=options("heatmap"),
    shell:
        "{WSI} heatmap --pyramid {input.pyramid:q} --tissue {input.tissue:q} --weights {input.weights:q}"
        " --model {input.model:q} --slide {wildcards.slide:q} --store {output.store:q}"
        " --receipt {output.receipt:q} --options {params.options:q} --threads {threads} > {log:q} 2>&1"


rule confusion:
    input:
        RESULTS + "/slides/{slide}/pyramid.json",
        RESULTS + "/slides/{slide}/truth.json",
        heatmap_receipt=RESULTS + "/heatmaps/{model}/{slide}.json",
        heatmap=ancient(RESULTS + "/heatmaps/{model}/{slide}.ome.zarr"),
        pyramid=ancient(RESULTS + "/slides/{slide}/pyramid.ome.zarr"),
        truth=ancient(RESULTS + "/slides/{slide}/truth.ome.zarr"),
    output:
        store=directory(RESULTS + "/confusion/{model}/{slide}.ome.zarr"),
        receipt=RESULTS + "/confusion/{model}/{slide}.json",
        scores=RESULTS + "/confusion/{model}/{slide}.scores.parquet",
        picture=report(
            RESULTS + "/confusion/{model}/{slide}.png",
            category="Slides",
            subcategory="{slide}",
            labels={"slide": "{slide}", "figure": "truth, heatmap and errors"},
        ),
    log:
        "logs/" + RESULTS + "/confusion/{model}/{slide}.log",
    benchmark:
        "logs/" + RESULTS + "/confusion/{model}/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=options("confusion"),
        synthetic="--synthetic" if CONFIG.cohort.synthetic else "--no-synthetic",
    shell:
        "{WSI} confusion --pyramid {input.pyramid:q} --truth {input.truth:q} --heatmap {input.heatmap:q}"
        " --heatmap-receipt {input.heatmap_receipt:q} --slide {wildcards.slide:q} --store {output.store:q}"
        " --receipt {output.receipt:q} --scores {output.scores:q} --picture {output.picture:q}"
        " --options {params.options:q} {params.synthetic} > {log:q} 2>&1"


rule detect:
    input:
        RESULTS + "/slides/{slide}/truth.json",
        heatmap_receipt=RESULTS + "/heatmaps/{model}/{slide}.json",
        heatmap=ancient(RESULTS + "/heatmaps/{model}/{slide}.ome.zarr"),
        truth=ancient(RESULTS + "/slides/{slide}/truth.ome.zarr"),
    output:
        detections=RESULTS + "/detections/{model}/{slide}.csv",
        geojson=RESULTS + "/detections/{model}/{slide}.geojson",
        receipt=RESULTS + "/detections/{model}/{slide}.json",
    log:
        "logs/" + RESULTS + "/detect/{model}/{slide}.log",
    benchmark:
        "logs/" + RESULTS + "/detect/{model}/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=options("detect"),
    shell:
        "{WSI} detect --truth {input.truth:q} --heatmap {input.heatmap:q}"
        " --heatmap-receipt {input.heatmap_receipt:q} --slide {wildcards.slide:q}"
        " --detections {output.detections:q} --geojson {output.geojson:q} --receipt {output.receipt:q}"
        " --options {params.options:q} > {log:q} 2>&1"
