"""Draws the built-in data, a fungarium and damaged artworks; imported only when the demo is asked for.

Imports nothing of this project.
"""
