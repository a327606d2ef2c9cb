# The model: trained here, or taken as it is where training.weights names a file or training.retrain is frozen.

if FROZEN:
    pass

elif CONFIG.training.weights:

    rule train:
        input:
            taken_model_json,
            weights=local(CONFIG.training.weights),
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
            size_px=CONFIG.patches.size_px,
            mpp=CONFIG.patches.mpp,
            folder=lambda wildcards, output: folder_of([output.weights]),
        shell:
            "wsi-pipeline train --take {input.weights:q} --size-px {params.size_px} --mpp {params.mpp}"
            " --output {params.folder:q} > {log:q} 2>&1"

else:

    rule train:
        input:
            start=start_files,
            training=training_receipts,
            validation=expand("<results>/slides/{slide}/patches.json", slide=VALIDATION),
            stores=ancient(expand("<results>/slides/{slide}/patches.zarr", slide=TRAINING + VALIDATION)),
            indices=ancient(expand("<results>/slides/{slide}/patches.parquet", slide=TRAINING + VALIDATION)),
            negatives=negatives(".json"),
            negative_stores=ancient(negatives(".zarr")),
            negative_indices=ancient(negatives(".parquet")),
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
            sheet=CONFIG.cohort.slides,
            rows=SHEET.digest("train", "validation"),
            exclude=excluded("train", "validation"),
            start=start_flags,
            negatives=lambda wildcards, input: [
                f"--negatives={folder}"
                for folder in dict.fromkeys(str(Path(one).parent) for one in input.negatives)
            ],
            slides=lambda wildcards, input: str(Path(folder_of(input.training)).parent),
            checkpoints=f"{RESULTS}/checkpoints/{{model}}",
            events=f"{RESULTS}/logs/train/{{model}}.tensorboard",
            folder=lambda wildcards, output: folder_of([output.weights]),
        # A shell that waits would keep a signal from the training, which writes a checkpoint when it is to end.
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
