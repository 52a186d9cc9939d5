"""A run: options, processes, folder, lock, signals, progress, when things are due.

May import every other room but common.predict.
"""
