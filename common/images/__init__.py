"""From files to pixels: decoding images and masks, augmentation, geometry.

May import common.system.
"""
