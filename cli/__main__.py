"""`python -m cg_local.cli`, for where the script `cg-local` is not on the path."""

from cg_local.cli.app import program

program()
