"""From patch features to labels: graph, cut, initial mask and IPO, on torch and numpy alone.

scipy and scikit-learn are imported inside the functions that need them.
"""
