"""What must be said wherever certain figures are shown: each sentence once, in one place."""

VIRTUAL = (
    "Virtual latency counts the instructions that a board executed and lays them out as time: no "
    "caches, no pipeline, one core, and a wide multiply costs what a move costs. It repeats to a "
    "fraction of a per cent on any computer, however busy, and is not the latency of a real board."
)
DTYPES = (
    "Float beside int8 on a virtual clock compares counts of instructions: a wide multiply costs "
    "what a move costs."
)
SMOKE = "A smoke test of the emulator, not a measurement of a board."
MODELLED = (
    "Modelled energy is counted events \u00d7 joules per event; no meter took part. It ranks by "
    "what the model charges for, and is not what a battery would lose."
)
SAME_COUNTS = (
    "Virtual latency and modelled energy both rest on counted instructions: that they agree here "
    "is partly by construction."
)
