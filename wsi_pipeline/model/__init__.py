"""The network: architecture, weights, training and inference.

Patches: `patch_selection` (sampling and storage), `patch_set`, `dataset` (patches in memory, batches, sampler).
Training: `training_run`, `augment`, `optimization`, `trainer`, `checkpoints`, `distributed`, `stop_signals`,
`training_log`.
Inference: `slide_prediction`, `predictor`, `inference`, `heatmap_filters`, `prediction_cache`.
Both: `inception`, `imagenet`, `model_dir`, `device`.

Imported by the stages and the command line; imports `masks`, `pyramid`, `metrics`, `receipts`, `io`, `config` and
`geometry`. PyTorch is imported only here and in the stage `train`.
"""
