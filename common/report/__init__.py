"""Tables, figures and report.html, drawn from a RunSummary.

May import common.data, common.metrics and what is below them; never common.run.
"""
