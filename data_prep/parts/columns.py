"""Names that tables of rows and data sets share; it imports nothing, because worker processes need it too."""

from __future__ import annotations

SPLITS = ("train", "validation", "test")
"""The splits of a data set, the one to learn from first"""

IMAGE, MASK = "image", "mask"
"""What the image columns are called in a prepared folder, whatever the table calls them; the trainers expect these"""

AUGMENTED = r"_aug\d+$"
"""What ends the id of an augmented copy; the rest is the original's id"""

SPLIT, ROW, SOURCE = "__split__", "__row__", "__source__"
"""Columns of a frame of rows: the split (empty if it is not known yet); the row's number in its table, from 0; and,
where the table holds the images themselves, the row's number in the Arrow files with them"""
