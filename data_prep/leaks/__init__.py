"""How images are described, looked up and compared to find the same picture twice."""
