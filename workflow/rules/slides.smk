# What is made of each slide: its pyramid, its tissue and its truth.


rule convert:
    input:
        lambda wildcards: SHEET[wildcards.slide].path,
    output:
        store=directory(RESULTS + "/slides/{slide}/pyramid.ome.zarr"),
        receipt=RESULTS + "/slides/{slide}/pyramid.json",
    log:
        "logs/" + RESULTS + "/convert/{slide}.log",
    benchmark:
        "logs/" + RESULTS + "/convert/{slide}.tsv"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        options=options("convert"),
        mpp=lambda wildcards: [f"--mpp={SHEET[wildcards.slide].mpp}"] if SHEET[wildcards.slide].mpp else [],
    shell:
        "{WSI} convert {input:q} --slide {wildcards.slide:q} {params.mpp:q} --store {output.store:q}"
        " --receipt {output.receipt:q} --options {params.options:q} --threads {threads} > {log:q} 2>&1"


rule tissue:
    input:
        RESULTS + "/slides/{slide}/pyramid.json",
        pyramid=ancient(RESULTS + "/slides/{slide}/pyramid.ome.zarr"),
    output:
        store=directory(RESULTS + "/slides/{slide}/tissue.ome.zarr"),
        receipt=RESULTS + "/slides/{slide}/tissue.json",
        picture=report(
            RESULTS + "/slides/{slide}/tissue.png",
            category="Slides",
            subcategory="{slide}",
            labels={"slide": "{slide}", "figure": "tissue"},
        ),
    log:
        "logs/" + RESULTS + "/tissue/{slide}.log",
    benchmark:
        "logs/" + RESULTS + "/tissue/{slide}.tsv"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=tissue_options,
    shell:
        "{WSI} tissue --pyramid {input.pyramid:q} --slide {wildcards.slide:q} --store {output.store:q}"
        " --receipt {output.receipt:q} --picture {output.picture:q} --options {params.options:q}"
        " --threads {threads} > {log:q} 2>&1"


def annotation(wildcards):
    path = SHEET[wildcards.slide].annotation
    return [path] if path else []


def truth_flags(wildcards):
    row = SHEET[wildcards.slide]
    flags = ["--exhaustive" if row.exhaustive else "--no-exhaustive"]
    if row.label:
        flags.append(f"--label={row.label}")
    if row.annotation:
        flags.append(f"--annotation={row.annotation}")
    return flags


rule truth:
    input:
        RESULTS + "/slides/{slide}/pyramid.json",
        annotation,
        pyramid=ancient(RESULTS + "/slides/{slide}/pyramid.ome.zarr"),
    output:
        store=directory(RESULTS + "/slides/{slide}/truth.ome.zarr"),
        receipt=RESULTS + "/slides/{slide}/truth.json",
        picture=report(
            RESULTS + "/slides/{slide}/truth.png",
            category="Slides",
            subcategory="{slide}",
            labels={"slide": "{slide}", "figure": "truth"},
        ),
    log:
        "logs/" + RESULTS + "/truth/{slide}.log",
    benchmark:
        "logs/" + RESULTS + "/truth/{slide}.tsv"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        options=options("truth"),
        row=truth_flags,
    shell:
        "{WSI} truth --pyramid {input.pyramid:q} --slide {wildcards.slide:q} {params.row:q}"
        " --store {output.store:q} --receipt {output.receipt:q} --picture {output.picture:q}"
        " --options {params.options:q} --threads {threads} > {log:q} 2>&1"
