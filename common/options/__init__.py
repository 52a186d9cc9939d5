"""The options of the scripts, and the command line that fills them in; so light that --help needs no torch.

May import common.data and below, inside functions.
"""
