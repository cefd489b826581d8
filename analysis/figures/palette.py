"""Colours of arms, by their place in a design, in every figure on paper and on pages. They need no matplotlib."""

ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f", "#b2a300")
