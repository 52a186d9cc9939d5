"""From files to pixels: decoding images and masks, augmentation, geometry.

Imports no other room.
"""
