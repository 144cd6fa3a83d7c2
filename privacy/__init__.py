"""Decide how much noise keeps every user's data private, and keep account of it.

Reading order: event, plan, sampling, clipping, noise, accounting, calibration, ledger,
statement. This floor knows nothing of Flower, Ray or the floors above it.
"""
