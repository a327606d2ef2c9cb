# Training and validation patches.


rule patches:
    input:
        RESULTS + "/slides/{slide}/pyramid.json",
        RESULTS + "/slides/{slide}/tissue.json",
        RESULTS + "/slides/{slide}/truth.json",
        pyramid=ancient(RESULTS + "/slides/{slide}/pyramid.ome.zarr"),
        tissue=ancient(RESULTS + "/slides/{slide}/tissue.ome.zarr"),
        truth=ancient(RESULTS + "/slides/{slide}/truth.ome.zarr"),
    output:
        store=directory(RESULTS + "/slides/{slide}/patches.zarr"),
        index=RESULTS + "/slides/{slide}/patches.parquet",
        receipt=RESULTS + "/slides/{slide}/patches.json",
    log:
        "logs/" + RESULTS + "/patches/{slide}.log",
    benchmark:
        "logs/" + RESULTS + "/patches/{slide}.tsv"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        options=options("patches"),
    shell:
        "{WSI} patches --pyramid {input.pyramid:q} --tissue {input.tissue:q} --truth {input.truth:q}"
        " --slide {wildcards.slide:q} --store {output.store:q} --index {output.index:q}"
        " --receipt {output.receipt:q} --options {params.options:q} --threads {threads} > {log:q} 2>&1"
