"""Search for a policy of compression under a budget, with the board in the loop.

Three dimensions stay apart: what may be chosen (`Space`), how the next choice is found
(`Strategy`), and how a choice is judged (`Estimator`). `study.run_search` ties them.
"""
