"""What leaves the house: saved models, ONNX, model cards, uploads to the Hub.

May import common.report and what is below it.
"""
