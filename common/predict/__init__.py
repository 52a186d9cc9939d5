"""Predictions for new images: inputs, batches, parts that survive a kill.

May import common.publish and what is below it.
"""
