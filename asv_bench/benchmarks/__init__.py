"""The benchmarks of Leveret.

Every benchmark says what one operation of it is: `operation` names it, and `operations` is how many one call does.
asv reports seconds per call; `quick.py` divides. What the installed version cannot do raises NotImplementedError in
`setup`, and the benchmark is left out.
"""
