"""Test-time refinement: solvers that move a hand's parameters towards the evidence of one image."""
