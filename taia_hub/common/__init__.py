"""What knows nothing of TAIA: whole files, optional imports, line files, progress, classes made at run time.

Plain values in and out; it may import nothing of this package but the errors.
"""
