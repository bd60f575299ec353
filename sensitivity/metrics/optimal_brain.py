"""optimal_brain: the squared output error that is left once all other weights of a row answer, 1/N sum_ij dW_ij^2 / [H^-1]_jj.

H = sum over rows of x x^T, damped by 1 % of its mean diagonal, N the number of predictions, dW = W_format - W. Optimal brain
surgeon (Hassibi and Stork 1993), in layers as SparseGPT (Frantar and Alistarh 2023) takes it, with the rounding error in
the place of the pruned weight. Errors count one at a time, as though the rest of the row were free to answer each: less than
`output_error` finds where inputs are correlated and errors are not. 1 / [H^-1]_jj is the same whichever column is rounded
first; the 1 / U_jj^2 of BAQ and SliM-LLM depends on the order.
"""

from __future__ import annotations

from functools import partial

from ..column_error import column_errors
from ..unexplained import by_all_others, estimate_unexplained

QUANTITY = "squared output error after all other weights answer"
estimate = partial(estimate_unexplained, by_all_others, column_errors, QUANTITY)
