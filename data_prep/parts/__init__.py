"""What several commands share: options for reading a data set, work in many processes, groups.

May import common.
"""
