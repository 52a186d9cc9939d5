"""Predictions for new images: inputs, windows, and parts from which a prediction resumes.

May import common.publish and what is below it.
"""
