"""Every way in: HTTP, jobs, store, client, command line, HTML report, dashboard.

    cli.py ──────────┐                    the command line works in its own process
    client.py ~http~ app.py + routes/ ────┤ planning from a stored profile: milliseconds, no torch
                     │ jobs.py            └> bitplan.allocator
                     └─ store.py <─ worker.py ─ work.py ─> bitplan.allocator, with torch, in a process of its own

The process that answers HTTP never imports torch: what needs it is a row in the table of jobs, and the worker takes it.
"""
