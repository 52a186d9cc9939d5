"""Rows of tables before any image is looked at: reading, labels, splits, and which rows are left out and why.

May import common and data_prep.parts.
"""
