"""Photographs of any size.

files   photographs in and out as they are: bits, gray, transparency, profile, metadata
tiles   restoring in bounded memory: tiles inside each sampling step
"""
