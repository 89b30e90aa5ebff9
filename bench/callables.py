"""The table of comparable callables, `fastrelu.peers`, under the name that tests and benchmarks import it by."""

from fastrelu.peers import CASES, PEERS, Call, Case, available, libraries

__all__ = ["CASES", "PEERS", "Call", "Case", "available", "libraries"]
