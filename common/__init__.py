"""What both scripts share, in rooms whose doors open one way; each room says what it may import.

run, predict -> publish -> report -> checkpoint, data, losses, metrics -> labels, images, optim -> model, system
"""
