"""Learned codecs, one file each; a file's name is its kind.

They are no models of `library.models`, which turn a picture into a picture: a codec's picture goes through a file.
"""
