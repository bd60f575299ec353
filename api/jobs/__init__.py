"""Jobs: what each kind does, how the engine remembers it step by step, the worker that runs it, and who keeps that alive.

queue       what the service's own process asks for, through `engine`
worker      the process that runs networks; `presence` and `recovery` see to it that no job is lost with one
workflows   what is done for each kind of job: `profiling` by blocks, `parents` by other jobs, each in `steps`
work        the same at once, for the command line
"""
