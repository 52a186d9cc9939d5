"""What a checkpoint holds, and folders of checkpoints that are complete or absent.

May import common.system.
"""
