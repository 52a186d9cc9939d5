"""How find_leaks.py describes images, looks them up and compares them to find the same picture twice.

May import common and data_prep.folder.images.
"""
