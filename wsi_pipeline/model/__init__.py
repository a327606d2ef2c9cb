"""The network: architecture, weights, training and inference.

Patches: `patch_selection` (sampling and storage), `patch_set`, `dataset` (patches in memory, batches, sampler).
Training: `training_run`, `augment`, `optimization`, `trainer`, `checkpoints`, `distributed`, `stop_signals`,
`training_log`.
Inference: `slide_prediction`, `predictor`, `inference`, `heatmap_filters`, `prediction_cache`.
Both: `inception`, `imagenet`, `model_dir`, `device`.

PyTorch is imported only here and in the stage `train`.
"""
