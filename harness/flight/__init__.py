"""Flight validation: a mission's requirements, the evidence for each, and a verdict."""
