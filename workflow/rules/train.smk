# The model: trained, copied from training.weights, or kept as it is with training.retrain: frozen.

if FROZEN:
    pass

elif CONFIG.training.weights:

    rule train:
        output:
            weights="<results>/model/{model}/weights.safetensors",
            receipt="<results>/model/{model}/model.json",
        log:
            "<logs>/train/{model}.log",
        benchmark:
            "<logs>/train/{model}.tsv"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=10,
        params:
            weights=given_weights,
            fingerprint=weights_fingerprint,
            size_px=CONFIG.patches.size_px,
            mpp=CONFIG.patches.mpp,
            folder=lambda wildcards, output: folder_of([output.weights]),
        shell:
            "wsi-pipeline train --take {params.weights:q} --size-px {params.size_px} --mpp {params.mpp}"
            " --output {params.folder:q} > {log:q} 2>&1"

else:

    localrules:
        training_manifest,

    rule training_manifest:
        input:
            training=training_receipts,
            validation=expand("<results>/slides/{slide}/patches.json", slide=VALIDATION),
            negatives=negatives(".json"),
        output:
            "<results>/manifests/{model}/training.tsv",
        log:
            "<logs>/training_manifest/{model}.log",
        params:
            step_version=STAGES["manifest"].step_version,
            sheet=sheet_path,
            rows=SHEET.digest("train", "validation"),
            exclude=excluded("train", "validation"),
            receipts=training_flags,
        shell:
            "wsi-pipeline manifest {output:q} --sheet {params.sheet:q} --rows {params.rows} {params.exclude:q}"
            " {params.receipts:q} > {log:q} 2>&1"

    rule train:
        input:
            fetched(negatives(".zarr")),
            fetched(negatives(".parquet")),
            imagenet=imagenet_weights,
            go_on_from=weights_of_the_round_before,
            manifest="<results>/manifests/{model}/training.tsv",
            patches=fetched(
                expand(
                    "<results>/slides/{slide}/patches.{kind}",
                    slide=TRAINING + VALIDATION,
                    kind=["json", "zarr", "parquet"],
                )
            ),
            negatives=fetched(negatives(".json")),
        output:
            weights="<results>/model/{model}/weights.safetensors",
            last="<results>/model/{model}/last.safetensors",
            receipt="<results>/model/{model}/model.json",
            history="<results>/model/{model}/history.csv",
            curves=report(
                "<results>/model/{model}/curves.png",
                category="Training",
                labels={"model": "{model}", "figure": "curves"},
            ),
            curves_pdf="<results>/model/{model}/curves.pdf",
            augmented_pdf="<results>/model/{model}/augmented.pdf",
            augmented=report(
                "<results>/model/{model}/augmented.png",
                category="Training",
                labels={"model": "{model}", "figure": "augmented patches"},
            ),
        log:
            "<logs>/train/{model}.log",
        benchmark:
            "<logs>/train/{model}.tsv"
        threads: CONFIG.training.cpu_threads
        resources:
            mem_mb=12000,
            runtime=1440,
            gpu=1,
        params:
            options=options("train"),
            synthetic=SYNTHETIC,
            sheet=sheet_path,
            rows=SHEET.digest("train", "validation"),
            exclude=excluded("train", "validation"),
            start=start_flags,
            fingerprint=weights_fingerprint,
            negatives=lambda wildcards, input: [
                f"--negatives={folder}" for folder in negatives_folders(wildcards, input)
            ],
            slides=lambda wildcards, input: (
                slides_folder(input.patches[0]) if REMOTE else f"{RESULTS}/slides"
            ),
            checkpoints=f"{RESULTS}/checkpoints/{{model}}",
            events=f"{RESULTS}/logs/train/{{model}}.tensorboard",
            folder=lambda wildcards, output: folder_of([output.weights]),
        # `exec`, so that signals reach the training, which then writes a checkpoint: a waiting shell would keep them.
        shell:
            "exec wsi-pipeline train --sheet {params.sheet:q} --rows {params.rows} {params.exclude:q}"
            " --slides {params.slides:q} {params.start:q} {params.negatives:q} --output {params.folder:q}"
            " --checkpoints {params.checkpoints:q} --checkpoint-minutes 10 --events {params.events:q}"
            " --memory-gib 4 --workers {threads} --gpus {resources.gpu} --options {params.options:q}"
            " {params.synthetic} > {log:q} 2>&1"

    rule negatives:
        input:
            "<results>/slides/{slide}/pyramid.json",
            "<results>/slides/{slide}/tissue.json",
            "<results>/slides/{slide}/truth.json",
            heatmap_receipt="<results>/heatmaps/{model}/{slide}.json",
            heatmap=ancient("<results>/heatmaps/{model}/{slide}.ome.zarr"),
            pyramid=ancient("<results>/slides/{slide}/pyramid.ome.zarr"),
            tissue=ancient("<results>/slides/{slide}/tissue.ome.zarr"),
            truth=ancient("<results>/slides/{slide}/truth.ome.zarr"),
        output:
            store=directory("<results>/negatives/{model}/{slide}.zarr"),
            index="<results>/negatives/{model}/{slide}.parquet",
            receipt="<results>/negatives/{model}/{slide}.json",
        log:
            "<logs>/negatives/{model}/{slide}.log",
        benchmark:
            "<logs>/negatives/{model}/{slide}.tsv"
        threads: 2
        resources:
            mem_mb=2000,
            runtime=60,
        params:
            options=options("negatives"),
        shell:
            "wsi-pipeline negatives --pyramid {input.pyramid:q} --tissue {input.tissue:q} --truth {input.truth:q}"
            " --heatmap {input.heatmap:q} --heatmap-receipt {input.heatmap_receipt:q}"
            " --slide {wildcards.slide:q} --store {output.store:q} --index {output.index:q}"
            " --receipt {output.receipt:q} --options {params.options:q} --threads {threads} > {log:q} 2>&1"


if not CONFIG.training.weights_file:

    localrules:
        imagenet_weights,

    rule imagenet_weights:
        output:
            IMAGENET,
        log:
            "<logs>/imagenet_weights.log",
        shell:
            "wsi-pipeline imagenet-weights {output:q} > {log:q} 2>&1"
