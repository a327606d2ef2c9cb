# The model: trained here, or taken as it is where training.weights names a file.
import os

IMAGENET = CONFIG.training.weights_file or "resources/inception_v3_google-0cc3c7bd.pth"

if CONFIG.training.weights:
    BESIDE = os.path.join(os.path.dirname(CONFIG.training.weights), "model.json")

    rule train:
        input:
            [BESIDE] if os.path.exists(BESIDE) else [],
            weights=CONFIG.training.weights,
        output:
            weights=RESULTS + "/model/{model}/weights.safetensors",
            receipt=RESULTS + "/model/{model}/model.json",
        log:
            "logs/" + RESULTS + "/train/{model}.log",
        benchmark:
            "logs/" + RESULTS + "/train/{model}.tsv"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=10,
        params:
            size_px=CONFIG.patches.size_px,
            mpp=CONFIG.patches.mpp,
        shell:
            "{WSI} train --take {input.weights:q} --size-px {params.size_px} --mpp {params.mpp}"
            " --weights {output.weights:q} --receipt {output.receipt:q} > {log:q} 2>&1"

else:

    def start_files(wildcards):
        start = CONFIG.training.start
        return {"random": [], "imagenet": [IMAGENET]}.get(start, [start])

    rule train:
        input:
            start=start_files,
            training=expand(RESULTS + "/slides/{slide}/patches.json", slide=TRAINING),
            validation=expand(RESULTS + "/slides/{slide}/patches.json", slide=VALIDATION),
            stores=ancient(expand(RESULTS + "/slides/{slide}/patches.zarr", slide=TRAINING + VALIDATION)),
            indices=ancient(expand(RESULTS + "/slides/{slide}/patches.parquet", slide=TRAINING + VALIDATION)),
        output:
            weights=RESULTS + "/model/{model}/weights.safetensors",
            receipt=RESULTS + "/model/{model}/model.json",
            history=RESULTS + "/model/{model}/history.csv",
            curves=report(
                RESULTS + "/model/{model}/curves.png",
                category="Training",
                labels={"model": "{model}", "figure": "curves"},
            ),
        log:
            "logs/" + RESULTS + "/train/{model}.log",
        benchmark:
            "logs/" + RESULTS + "/train/{model}.tsv"
        threads: CONFIG.training.cpu_threads
        resources:
            mem_mb=12000,
            runtime=1440,
            gpu=1,
        params:
            options=options("train"),
            checkpoints=RESULTS + "/checkpoints/{model}",
            sets=lambda wildcards, input: [
                *(f"--training={path}" for path in input.training),
                *(f"--validation={path}" for path in input.validation),
                *(f"--imagenet={path}" for path in input.start if CONFIG.training.start == "imagenet"),
            ],
        shell:
            "{WSI} train {params.sets:q} --weights {output.weights:q} --receipt {output.receipt:q}"
            " --history {output.history:q} --curves {output.curves:q} --checkpoints {params.checkpoints:q}"
            " --memory-gib 4 --checkpoint-minutes 10 --options {params.options:q} > {log:q} 2>&1"


if not CONFIG.training.weights_file:

    localrules:
        imagenet_weights,

    rule imagenet_weights:
        output:
            IMAGENET,
        log:
            "logs/imagenet_weights.log",
        shell:
            "{WSI} imagenet-weights {output:q} > {log:q} 2>&1"
