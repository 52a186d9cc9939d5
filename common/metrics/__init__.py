"""Streaming metrics, calibration, and what a report needs to know of an evaluation.

May import common.labels and what is below it.
"""
