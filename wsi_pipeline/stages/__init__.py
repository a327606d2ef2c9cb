"""The stages of the pipeline: one module, one subcommand, one rule and one test file each, of the same name.

Only the command line imports this package. A stage never imports another stage.
"""
