"""Prepared folders: rows with labels become files that the trainers read, in many processes.

May import common, data_prep.parts and data_prep.rows.
"""
