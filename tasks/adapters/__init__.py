"""The only code that knows a platform. It does not know Prefect."""
