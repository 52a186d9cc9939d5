"""From names to class numbers: label trees from tables and files, cleaning, encoding.

May import common.model and common.system.
"""
