"""`python -m wsi_pipeline` is `wsi-pipeline`."""

from wsi_pipeline.cli.app import main

main()
