"""`wsi-pipeline view`: results at full resolution in a browser."""
