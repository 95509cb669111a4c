"""A package, so that Playwright ends with it: while it runs, no other test of the process has an event loop of its own."""
