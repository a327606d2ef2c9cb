# Training and validation patches.


rule patches:
    input:
        "<results>/slides/{slide}/pyramid.json",
        "<results>/slides/{slide}/tissue.json",
        "<results>/slides/{slide}/truth.json",
        pyramid=ancient("<results>/slides/{slide}/pyramid.ome.zarr"),
        tissue=ancient("<results>/slides/{slide}/tissue.ome.zarr"),
        truth=ancient("<results>/slides/{slide}/truth.ome.zarr"),
    output:
        store=directory("<results>/slides/{slide}/patches.zarr"),
        index="<results>/slides/{slide}/patches.parquet",
        receipt="<results>/slides/{slide}/patches.json",
    log:
        "<logs>/patches/{slide}.log",
    benchmark:
        "<logs>/patches/{slide}.tsv"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        options=options("patches"),
    shell:
        "wsi-pipeline patches --pyramid {input.pyramid:q} --tissue {input.tissue:q} --truth {input.truth:q}"
        " --slide {wildcards.slide:q} --store {output.store:q} --index {output.index:q}"
        " --receipt {output.receipt:q} --options {params.options:q} --threads {threads} > {log:q} 2>&1"
