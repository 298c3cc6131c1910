"""``pack --auto``: the configuration with the fastest step that fits a memory budget.

    candidates   what may be chosen: one row for each choice
    drafts       a candidate compiled and planned, never run: exact memory, work of each operator
    calibrate    a few timed runs on this host
    cost         from work to milliseconds
    memory       from a plan to what the process of training needs
    estimate     between drafts: all candidates at once
    choose       which of them, and why
    frontier     the candidates that no other beats in memory, time and error
    search       all of it together
"""
