"""The estimators, one a file; `METRICS` in the folder above lists them."""
