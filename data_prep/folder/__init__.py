"""Prepared folders: rows with splits and labels become files that the trainers read, in many processes.

May import common, data_prep.parts and data_prep.rows. images, scans, scan_store and shards run in the worker processes
and import nothing heavy (no torch, datasets or pandas).
"""
