"""The command line.

`app` builds the Typer application and turns errors into exit codes; `options` holds the options that several
commands share; `tools` holds the commands beside the stages. Nothing imports this package but the entry point.
"""
