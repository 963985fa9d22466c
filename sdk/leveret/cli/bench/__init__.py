"""`leveret bench`: the performance guide's five benchmarks, and one with many tasks that publish at once.

`command` has the options, `suite` the benchmarks, `results` what they return and how JSON keeps it, `tables` the table
in the terminal, `page` the HTML page.
"""
