"""Cameras, detectors, a tracker and a sink: detect road users in real footage.

The vision code does not use the bus:

    footage.py        frames of two Mcity cameras, or of your own footage
    pictures.py       encoding and decoding of JPEG
    detection.py      boxes around moving objects
    tracking.py       tracks, from the boxes of successive frames
    results.py        a table of the tracks, and a picture of the run
    offline.py        all steps in one process, without a broker

`nodes.py` makes nodes of them, and `__main__.py` runs the nodes. `mcity/` has the footage, its licence and its credit.
"""
