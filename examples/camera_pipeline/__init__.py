"""Cameras, detectors, tracker and sink: road users found in real footage.

The vision is in plain modules without messaging, readable one at a time:

    footage.py        where frames come from: two Mcity cameras, or footage of your own
    pictures.py       JPEG bytes to pictures and back
    detection.py      boxes around what moves
    tracking.py       boxes joined to numbered tracks
    results.py        a table of the tracks, and one picture of the whole run
    offline.py        all of it in one process, without a broker

`nodes.py` makes nodes of them, and `__main__.py` runs the nodes. `mcity/` has the footage, its licence and its credit.
"""
