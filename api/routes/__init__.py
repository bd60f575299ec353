"""The routes, one file for each noun; each route is a few lines over the store, the planner or the queue."""
