"""The suite behind ``python -m fastrelu bench``, in the package so that it runs where the package is installed.

`operations` is the table of everything that is measured, over `layers`, `convolutions` and `network`, the shapes of real
models, and over the callables of `fastrelu.peers` and its siblings. `suite` is one test of pytest-benchmark over that table,
`plugin` its options, `interrupts` and `contention` what may disturb it, `results` what a run has written, `tables`, `pictures`
and `comparison` what is made of it, `command` the command line.
"""
