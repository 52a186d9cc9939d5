"""Losses per level of the label tree, and weights of classes.

May import common.images and common.model.
"""
