"""Camera source, detector, tracker and sink: road users found in real footage.

The vision parts are plain modules without messaging, readable one at a time:

    footage.py        where frames come from: the street clip, or a folder of JPEGs
    pictures.py       JPEG bytes to pictures and back
    camera_motion.py  how far the camera itself has moved
    background.py     what the scene looks like without its road users
    blobs.py          pixels that move, put together to blobs
    detection.py      boxes around what moves
    reorder.py        frames that several workers shared, back in order
    tracking.py       boxes joined to numbered tracks
    render.py         one annotated frame, and the clip made of them
    summary.py        the one picture that tells the whole run
    offline.py        all of it in one process, with the time of each stage
"""
