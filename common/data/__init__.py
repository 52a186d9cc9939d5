"""From data sets to batches: splits, rows, broken images, order of the samples, a cache of decoded images.

May import common.labels, common.images and what is below them.
"""
