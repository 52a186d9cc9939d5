"""The model that is saved and loaded: label tree, heads, backbones, decoders.

A saved model carries a copy of these files, so they import nothing of this project but each other.
"""
