"""Boards, the links to them, and the agent that measures on them.

- `board`: what a board, a session, a lease and an identity are; `boards` lists the kinds.
- `host`: this machine as a board.
- `pool`: who may use a board, and under which epoch.
- `links`, `session`: a byte stream with deadlines, and the host's side of the wire protocol on it.
- `agent`: the program on the board; `provision` packs it into one file.
- `health`, `doctor`: how a board is, and what would spoil its measurements.
"""
