"""The program that runs on a board: a supervisor, and one fresh worker a measurement.

It needs Python 3.8 or newer, the standard library, and in the worker NumPy and the runtime that is
measured. The supervisor imports neither, so that it stays small and starts fast on a small board.
"""
