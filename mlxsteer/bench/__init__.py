"""What steering costs, measured so that nobody can doubt it.

`measure` times two sides in turn and counts graph nodes; `works` are what is done, `cases` what is
compared, `peers` what the others do; `suite` runs all of it, `results` holds what came out, and
`machine` says on what. It knows nothing of terminals, and of plots only where `plots` draws them.
"""

__all__: list[str] = []
