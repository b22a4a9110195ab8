"""Compiled code that ships from one worker to others like it: what it is for, how it is packed, how it travels."""
