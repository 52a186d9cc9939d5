"""How the loss is minimised: parameter groups, learning rate and weights of the levels by step, skipped steps.

May import common.model.
"""
