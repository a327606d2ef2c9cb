"""Train and evaluate tumour classifiers on whole-slide images."""

__version__ = "0.1.0"
