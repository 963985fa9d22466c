"""The benchmarks of Leveret.

`operation` of a benchmark names the unit that it counts, and `operations` is the number of units in one call. asv
reports seconds per call; `quick.py` divides. A benchmark that the installed version cannot run raises
NotImplementedError in `setup`, and is left out.
"""
