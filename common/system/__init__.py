"""What every room needs of the machine: files that are whole or absent, locks of folders, worker processes.

Imports no other room.
"""
