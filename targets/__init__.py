"""Boards, the links to them, and the agent that measures on them."""
