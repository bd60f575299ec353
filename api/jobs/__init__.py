"""Jobs: what each kind does, the worker that does it, and who keeps the worker alive."""
