"""The network: architecture, weights, training and inference.

Training: `dataset` (patches in memory, batches, sampler), `augment`, `optimization`, `trainer`, `checkpoints`,
`distributed`, `training_log`. Inference: `predictor`, `inference`, `heatmap_filters`, `prediction_cache`. Both:
`inception`, `imagenet`, `model_dir`, `device`. Stages import it; it imports `pyramid`, `masks`, `metrics`, `io` and
`config`. PyTorch is imported here and in the stages that call it, nowhere else.
"""
