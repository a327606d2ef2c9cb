"""The command line.

`app` builds the Typer application and turns errors into exit codes; `tools` has the commands that are not stages.
Options that stages share are in `stages.arguments`. Only the entry point and `__main__` import this package.
"""
