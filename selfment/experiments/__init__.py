"""The paper's experiments: data sets, recipes, comparisons, and runs from data to scores."""
