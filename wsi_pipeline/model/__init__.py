"""The network: architecture, weights, training and inference.

Patches: `patch_selection` (which are drawn and stored), `patch_set`, `dataset` (patches in memory, batches, sampler).
Training: `augment`, `optimization`, `trainer`, `checkpoints`, `distributed`, `stop_signals`, `training_log`.
Inference: `predictor`, `inference`, `heatmap_filters`, `prediction_cache`.
Both: `inception`, `imagenet`, `model_dir`, `device`.

Stages import it; it imports `pyramid`, `masks`, `metrics`, `receipts`, `io` and `config`. PyTorch is imported here and
in the stages that call it, nowhere else.
"""
