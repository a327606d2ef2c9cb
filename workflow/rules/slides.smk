# Pyramid, tissue mask and truth of each slide.


rule convert:
    input:
        source=source,
    output:
        store=(
            directory("<results>/slides/{slide}/pyramid.ome.zarr")
            if KEEP
            else temp(directory("<results>/slides/{slide}/pyramid.ome.zarr"))
        ),
        overview=[] if KEEP else directory(OVERVIEW),
        receipt="<results>/slides/{slide}/pyramid.json",
    log:
        "<logs>/convert/{slide}.log",
    benchmark:
        "<logs>/convert/{slide}.tsv"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        options=options("convert"),
        fingerprint=fingerprint("path"),
        source=source_path,
        mpp=lambda wildcards: [f"--mpp={SHEET[wildcards.slide].mpp}"] if SHEET[wildcards.slide].mpp else [],
        overview=lambda wildcards, output: [] if KEEP else [f"--overview={output.overview}"],
    shell:
        "wsi-pipeline convert --slide {wildcards.slide:q} {params.mpp:q} --store {output.store:q}"
        " --receipt {output.receipt:q} {params.overview:q} --options {params.options:q} --threads {threads}"
        " -- {params.source:q} > {log:q} 2>&1"


rule tissue:
    input:
        "<results>/slides/{slide}/pyramid.json",
        pyramid=ancient("<results>/slides/{slide}/pyramid.ome.zarr"),
    output:
        store=directory("<results>/slides/{slide}/tissue.ome.zarr"),
        receipt="<results>/slides/{slide}/tissue.json",
        picture=report(
            "<results>/slides/{slide}/tissue.png",
            category="Slides",
            subcategory="{slide}",
            labels={"slide": "{slide}", "figure": "tissue"},
        ),
        pdf="<results>/slides/{slide}/tissue.pdf",
    log:
        "<logs>/tissue/{slide}.log",
    benchmark:
        "<logs>/tissue/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=tissue_options,
        synthetic=SYNTHETIC,
    shell:
        "wsi-pipeline tissue --pyramid {input.pyramid:q} --slide {wildcards.slide:q} --store {output.store:q}"
        " --receipt {output.receipt:q} --picture {output.picture:q} --options {params.options:q}"
        " {params.synthetic} --threads {threads} > {log:q} 2>&1"


rule truth:
    input:
        "<results>/slides/{slide}/pyramid.json",
        annotation=annotation,
        pyramid=ancient("<results>/slides/{slide}/pyramid.ome.zarr"),
    output:
        store=directory("<results>/slides/{slide}/truth.ome.zarr"),
        receipt="<results>/slides/{slide}/truth.json",
        picture=report(
            "<results>/slides/{slide}/truth.png",
            category="Slides",
            subcategory="{slide}",
            labels={"slide": "{slide}", "figure": "truth"},
        ),
        pdf="<results>/slides/{slide}/truth.pdf",
        geojson="<results>/slides/{slide}/truth.geojson",
    log:
        "<logs>/truth/{slide}.log",
    benchmark:
        "<logs>/truth/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=options("truth"),
        row=truth_flags,
        fingerprint=fingerprint("annotation"),
        annotation=annotation_flags,
        synthetic=SYNTHETIC,
    shell:
        "wsi-pipeline truth --pyramid {input.pyramid:q} --slide {wildcards.slide:q} {params.row:q} {params.annotation:q}"
        " --store {output.store:q} --receipt {output.receipt:q} --picture {output.picture:q}"
        " --geojson {output.geojson:q} --options {params.options:q} {params.synthetic} --threads {threads}"
        " > {log:q} 2>&1"
