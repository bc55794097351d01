"""Boards, the links to them, and the agent that measures on them.

- `board`: what a board, a session, a lease and an identity are; `boards` lists the kinds.
- `host`: this machine as a board. `linux`: any Linux board, as `lab.toml` describes it.
- `pool`: who may use a board, and under which epoch.
- `links`, `session`: a byte stream with deadlines, and the host's side of the wire protocol on it.
- `ssh`: a link over SSH, on `ssh_connection` (who is who), `ssh_shell` (commands) and `ssh_carrier`
  (files).
- `qemu`: an emulated ARM board, on `qemu_run` (a machine and its switches), `qemu_state` (states it
  starts from), `qemu_keeper` (what `board up` leaves behind), `qemu_process` and `qmp` (QEMU
  itself); its image comes from `qemu_image`.
- `probes`, `cores`: what asks a board for its peak rates, and what is documented of its caches.
- `agent`: the program on the board; `provision` packs it into one file.
- `health`, `doctor`: how a board is, and what would spoil its measurements.
"""
