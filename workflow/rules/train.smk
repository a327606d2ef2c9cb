# The model: trained here, or taken as it is where training.weights names a file.

if CONFIG.training.weights:

    rule train:
        input:
            taken_model_json,
            weights=CONFIG.training.weights,
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
        shell:
            "wsi-pipeline train --take {input.weights:q} --size-px {params.size_px} --mpp {params.mpp}"
            " --weights {output.weights:q} --receipt {output.receipt:q} > {log:q} 2>&1"

else:

    rule train:
        input:
            start=start_files,
            training=training_receipts,
            validation=expand("<results>/slides/{slide}/patches.json", slide=VALIDATION),
            stores=ancient(expand("<results>/slides/{slide}/patches.zarr", slide=TRAINING + VALIDATION)),
            indices=ancient(expand("<results>/slides/{slide}/patches.parquet", slide=TRAINING + VALIDATION)),
        output:
            weights="<results>/model/{model}/weights.safetensors",
            receipt="<results>/model/{model}/model.json",
            history="<results>/model/{model}/history.csv",
            curves=report(
                "<results>/model/{model}/curves.png",
                category="Training",
                labels={"model": "{model}", "figure": "curves"},
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
            checkpoints=f"{RESULTS}/checkpoints/{{model}}",
            sets=lambda wildcards, input: [
                *(f"--training={path}" for path in input.training),
                *(f"--validation={path}" for path in input.validation),
                *(f"--imagenet={path}" for path in input.start if CONFIG.training.start == "imagenet"),
            ],
        shell:
            "wsi-pipeline train {params.sets:q} --weights {output.weights:q} --receipt {output.receipt:q}"
            " --history {output.history:q} --curves {output.curves:q} --checkpoints {params.checkpoints:q}"
            " --memory-gib 4 --checkpoint-minutes 10 --options {params.options:q} > {log:q} 2>&1"


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
